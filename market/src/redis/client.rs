//! The connection: reconnects by itself, answers within a bounded time.
