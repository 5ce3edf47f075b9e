//! Content by its id. One block a content: CIDv1, codec `raw`, SHA2-256, so that the digest inside the id is the hash of
//! the bytes, which is what a receipt's `resultHash` is.

use std::{fmt, str::FromStr};

use alloy::primitives::B256;
use cid::Cid;
use multihash::Multihash;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

const RAW: u64 = 0x55;
const SHA2_256: u64 = 0x12;

/// Id of a content: `bafkrei…`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId(B256);

/// Why a text is not a [`ContentId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentIdError {
    /// Not a CID at all.
    #[error("is not a CID")]
    Malformed,
    /// A CID of another version, codec or hash.
    #[error("must be a CIDv1 with codec raw and hash sha2-256, in base32 (bafkrei…)")]
    Unsupported,
}

impl ContentId {
    /// The id of content whose SHA2-256 is `digest`.
    #[must_use]
    pub fn from_digest(digest: B256) -> Self {
        Self(digest)
    }

    /// The id of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = ContentHasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// SHA2-256 of the content.
    #[must_use]
    pub fn digest(&self) -> B256 {
        self.0
    }
}

/// Computes a [`ContentId`] from bytes as they come.
#[derive(Default, Clone)]
pub struct ContentHasher(Sha256);

impl ContentHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id of all bytes taken.
    #[must_use]
    pub fn finish(self) -> ContentId {
        ContentId(B256::from_slice(&self.0.finalize()))
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 32 bytes always fit a Multihash<64>.
        let hash = Multihash::<64>::wrap(SHA2_256, self.0.as_slice()).map_err(|_| fmt::Error)?;
        Cid::new_v1(RAW, hash).fmt(f)
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentId {
    type Err = ContentIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let cid = Cid::try_from(text).map_err(|_| ContentIdError::Malformed)?;
        if cid.codec() != RAW || cid.hash().code() != SHA2_256 {
            return Err(ContentIdError::Unsupported);
        }
        let digest = B256::try_from(cid.hash().digest()).map_err(|_| ContentIdError::Unsupported)?;
        let id = Self(digest);
        // One content, one name: other bases and casings would make two keys of it.
        if id.to_string() == text { Ok(id) } else { Err(ContentIdError::Unsupported) }
    }
}

impl Serialize for ContentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl utoipa::PartialSchema for ContentId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^bafkrei[a-h][a-z2-7]{50}[aeimquy4]$"))
            .description(Some("A content's id: CIDv1, codec raw, hash sha2-256, in base32"))
            .examples(["bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"])
            .into()
    }
}

impl utoipa::ToSchema for ContentId {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_content_has_the_id_that_ipfs_gives_it() {
        let id = ContentId::of(b"");
        assert_eq!(id.to_string(), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku");
        assert_eq!(id.to_string().parse::<ContentId>(), Ok(id));
    }

    #[test]
    fn other_cids_are_refused_with_the_reason() {
        assert_eq!("../etc/passwd".parse::<ContentId>(), Err(ContentIdError::Malformed));
        let v0 = "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR";
        assert_eq!(v0.parse::<ContentId>(), Err(ContentIdError::Unsupported));
        let upper = ContentId::of(b"x").to_string().to_uppercase();
        assert!(upper.parse::<ContentId>().is_err());
    }
}
