//! Names of users, as all applications that share sessions write them.

use std::{fmt, str::FromStr};

use alloy::primitives::Address;

/// Names a user: `{userId}` in keys. It has nothing in it that could end its place in a key, match other keys, or name
/// another slot of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(String);

/// Longest name.
const MAX_BYTES: usize = 128;

/// Not a [`UserId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to {MAX_BYTES} letters, digits and _ - . @ + | ~ =")]
pub struct UserIdError;

impl UserId {
    /// How a user is named where no other application gave a name: by the checksummed address.
    #[must_use]
    pub fn of(wallet: Address) -> Self {
        Self(wallet.to_checksum(None))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserId {
    type Err = UserIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@+|~=".contains(&byte);
        if text.is_empty() || text.len() > MAX_BYTES || !text.bytes().all(fits) {
            return Err(UserIdError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_name_another_key_is_no_user() {
        for name in ["user_123", "auth0|5f7c", "a@b.example", &UserId::of(Address::ZERO).to_string(), &"x".repeat(128)]
        {
            assert_eq!(name.parse::<UserId>().unwrap().as_str(), name);
        }
        for name in
            ["", "a:b", "user_123:wallet", "*", "a b", "a\r\nb", "{x}", "a\0", "é", "a/b", "..\\", &"x".repeat(129)]
        {
            assert_eq!(name.parse::<UserId>(), Err(UserIdError), "{name:?}");
        }
    }
}
