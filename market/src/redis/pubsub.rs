//! Listening to channels, across reconnects.
