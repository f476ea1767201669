//! The program. Everything is in the library; see `lib.rs` for the map.

fn main() -> std::process::ExitCode {
    accountd::cli::run()
}
