//! libpq's two ways to write a connection: `postgres://user@host/database?key=value` and `key=value key='value'`.
//!
//! Faults are told without the text itself, which may hold a password.

use std::collections::BTreeMap;

/// The parameters of a connection string, by libpq's names.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let text = text.trim();
    match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
        Some(rest) => parse_url(rest),
        None if text.contains("://") => Err("the URL must begin with postgres:// or postgresql://".into()),
        None => parse_pairs(text),
    }
}

fn parse_url(rest: &str) -> Result<BTreeMap<String, String>, String> {
    let mut parameters = BTreeMap::new();
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            parameters.insert(name.to_string(), value);
        }
    };
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = before.split_once('/').unwrap_or((before, ""));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    put("user", decode(user)?);
    put("password", decode(password)?);
    put("dbname", decode(database)?);

    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = split_port(host)?;
        names.push(decode(name)?);
        ports.push(port.to_string());
    }
    if names.iter().any(|name| !name.is_empty()) {
        put("host", names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        put("port", ports.join(","));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or("a parameter after the \"?\" has no \"=\"")?;
        put(&decode(name)?, decode(value)?);
    }
    Ok(parameters)
}

fn split_port(host: &str) -> Result<(&str, &str), String> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or("the address after \"[\" has no \"]\"")?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if after.is_empty() => Ok((address, "")),
            None => Err("only a port may follow \"]\"".into()),
        };
    }
    Ok(host.split_once(':').unwrap_or((host, "")))
}

fn decode(text: &str) -> Result<String, String> {
    let fault = "a \"%\" is not followed by two hexadecimal digits; write %25 for a percent sign";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or(fault);
        let (high, low) = (digit()?, digit()?);
        bytes.push((high * 16 + low) as u8);
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err("it is not valid text".into()),
    }
}

fn parse_pairs(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut parameters = BTreeMap::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        if rest.peek().is_none() {
            return Ok(parameters);
        }
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| !c.is_whitespace() && *c != '=') {
            name.push(c);
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        if rest.next() != Some('=') || name.is_empty() {
            return Err("it is neither a postgres:// URL nor a list of key=value pairs".into());
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = rest.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match rest.next_if(|c| quoted || !c.is_whitespace()) {
                Some('\'') if quoted => break,
                Some('\\') => value.extend(rest.next()),
                Some(c) => value.push(c),
                None if quoted => return Err(format!("the quote around {name} is not closed")),
                None => break,
            }
        }
        parameters.insert(name, value);
    }
}
