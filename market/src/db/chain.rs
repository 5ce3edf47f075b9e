//! Blocks, events and the cursor. Writer: the indexer.
