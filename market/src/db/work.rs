//! Leases, completions and the payments that they make due. Writer: the API.
