//! Sign-in: nonces and sessions. Writer: the API.
