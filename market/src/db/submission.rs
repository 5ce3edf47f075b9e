//! Orders announced before they are on the chain. Writer: the API.
