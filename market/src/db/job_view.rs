//! A job as all writers' rows together show it. Read only.
