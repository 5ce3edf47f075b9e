//! Contents that the object store holds. Writer: the API.
