//! Folded rows of the registry: nodes and stakes. Writer: the indexer; everyone reads.
