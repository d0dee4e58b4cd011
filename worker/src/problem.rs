//! What stops the program, in the user's terms.

use std::fmt;
use std::process::ExitCode;

/// A message with what is known about it, what to do next, and the exit code that it leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// The connection was lost: trying again may help.
    pub transient: bool,
    code: u8,
}

impl Problem {
    /// Something failed or was found wrong: exit code 1.
    pub fn failure(message: impl Into<String>) -> Self {
        Self { message: message.into(), detail: None, hint: None, transient: false, code: 1 }
    }

    /// The command line, the environment or the configuration file is wrong: exit code 2.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self { code: 2, ..Self::failure(message) }
    }

    /// Adds what is known about it.
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// Adds what to do next.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The exit code of the program.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, "\n  detail: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}
