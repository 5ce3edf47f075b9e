//! Entities whose Redis state has to be projected again. Writers: the indexer (`chain_outbox`) and the API (`work_outbox`).
