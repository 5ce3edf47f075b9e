//! What a node means when it refuses a transaction. Pure. Nodes agree on the meaning and not on the words.

use alloy::transports::TransportError;

/// Why a node did not take a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has it already.
    Known,
    /// The nonce is used: by this transaction, an earlier form of it, or a foreign one.
    NonceTooLow,
    /// It has another one of the same nonce, and this one does not offer enough more.
    Underpriced,
    /// It offers less than a block asks now.
    PricedOut,
    /// The account has too little.
    InsufficientFunds,
    /// Anything else.
    Other,
}

impl Refusal {
    /// Reads the node's answer. Nothing if the node did not answer: then nobody knows whether it took the transaction.
    pub fn of(error: &TransportError) -> Option<Self> {
        error.as_error_resp().map(|answer| Self::read(&answer.message))
    }

    fn read(message: &str) -> Self {
        let message = message.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        if says(&["already known", "already imported", "already_exists", "already exists", "known transaction"]) {
            Self::Known
        } else if says(&["nonce too low", "nonce is too low", "oldnonce", "nonce has already been used"]) {
            Self::NonceTooLow
        } else if says(&["replacement transaction underpriced", "replacement_underpriced", "replacementnotallowed"]) {
            Self::Underpriced
        } else if says(&["underpriced", "less than block base fee", "feetoolow", "fee too low", "fee cap"]) {
            Self::PricedOut
        } else if says(&["insufficient funds", "insufficientfunds", "insufficient balance"]) {
            Self::InsufficientFunds
        } else {
            Self::Other
        }
    }

    /// Whether only higher fees help.
    pub fn asks_for_more(self) -> bool {
        matches!(self, Self::Underpriced | Self::PricedOut)
    }
}

#[cfg(test)]
mod tests {
    use super::Refusal;

    #[test]
    fn refusals_are_read_by_their_meaning() {
        for (message, meaning) in [
            ("already known", Refusal::Known),
            ("transaction already imported", Refusal::Known),
            ("AlreadyKnown: ALREADY_EXISTS: already known", Refusal::Known),
            ("nonce too low: next nonce 7, tx nonce 3", Refusal::NonceTooLow),
            ("OldNonce", Refusal::NonceTooLow),
            ("replacement transaction underpriced", Refusal::Underpriced),
            ("transaction underpriced", Refusal::PricedOut),
            ("max fee per gas less than block base fee: address 0x1, maxFeePerGas: 1", Refusal::PricedOut),
            ("Insufficient funds for gas * price + value", Refusal::InsufficientFunds),
            ("exceeds block gas limit", Refusal::Other),
        ] {
            assert_eq!(Refusal::read(message), meaning, "{message}");
        }
    }
}
