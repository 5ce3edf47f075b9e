//! Folded rows of the escrow: jobs, accounts, earnings. Writer: the indexer; everyone reads.
