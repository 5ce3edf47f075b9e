//! Logging, the same in every process.

use tracing_subscriber::{EnvFilter, fmt};

/// Sends log lines to standard error: as JSON if `json`, otherwise as text. `RUST_LOG` filters; the default is `info`.
pub fn init(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // At debug it names its endpoint by URL, and that has keys in it.
    let filter = match "alloy_transport_http=warn".parse() {
        Ok(quiet) => filter.add_directive(quiet),
        Err(_) => filter,
    };
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}
