//! What nodes told the API of themselves. Writer: the API.
