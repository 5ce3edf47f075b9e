//! Payment batches, their signed bytes, and what is due. Writer: the settler.
