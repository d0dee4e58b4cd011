//! Keeps the section in which pgrx embeds the extension's schema, which some linkers would drop as unused.
fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--no-gc-sections");
    }
    println!("cargo::rerun-if-changed=../sql");
    println!("cargo::rerun-if-changed=../views");
}
