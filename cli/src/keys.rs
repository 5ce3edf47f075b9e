//! Keys on disk: the account's secp256k1 key, and age identities (X25519).

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use age::secrecy::{ExposeSecret, SecretString};
use age::x25519::{Identity, Recipient};
use alloy::primitives::{B256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use anyhow::Context;
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use chrono::{DateTime, SecondsFormat, Utc};
use tempfile::NamedTempFile;

use crate::error::Failure;

const AGE_HRP: Hrp = Hrp::parse_unchecked("age");
/// File name of the node's identity inside its data directory.
pub const NODE_IDENTITY: &str = "identity.txt";

/// How an encrypted key file begins.
const AGE_HEADER: &[u8] = b"age-encryption.org/";
/// Work factor of new key files: 2^15 rounds, some 100 ms. Who reads a key file knows the passphrase; who guesses at it
/// pays this for every guess.
const WORK_FACTOR: u8 = 15;

/// The signer from the file at `key_file`, or else from `inline`; each holds a private key as 64 hex digits, with or
/// without `0x`. The file may be encrypted; then `passphrase` is asked for.
pub fn load_signer(
    key_file: Option<&Path>,
    inline: Option<&str>,
    passphrase: impl FnOnce() -> anyhow::Result<SecretString>,
) -> anyhow::Result<PrivateKeySigner> {
    match (key_file, inline) {
        (Some(path), _) => read_key(path, passphrase),
        (None, Some(text)) => parse_key(text.as_bytes()),
        (None, None) => {
            Err(Failure::Usage("this needs your key: give --key-file, LITTORAL_KEY_FILE or LITTORAL_KEY".into()).into())
        }
    }
}

/// The private key in the file at `path`.
pub fn read_key(
    path: &Path,
    passphrase: impl FnOnce() -> anyhow::Result<SecretString>,
) -> anyhow::Result<PrivateKeySigner> {
    let bytes = fs::read(path).with_context(|| format!("cannot read the key file {}", path.display()))?;
    if !bytes.starts_with(AGE_HEADER) {
        return parse_key(&bytes);
    }
    let identity = age::scrypt::Identity::new(passphrase()?);
    let plain = age::decrypt(&identity, &bytes)
        .map_err(|error| Failure::Usage(format!("cannot decrypt the key file {}: {error}", path.display())))?;
    parse_key(&plain)
}

fn parse_key(text: &[u8]) -> anyhow::Result<PrivateKeySigner> {
    let text = std::str::from_utf8(text).unwrap_or_default();
    // The parser's own message could quote the key.
    text.trim().parse().map_err(|_| Failure::Usage("the key is not a private key of 64 hex digits".into()).into())
}

/// Writes a private key to `path`, readable by its owner only and encrypted if there is a `passphrase`. Never overwrites.
pub fn write_key(path: &Path, signer: &PrivateKeySigner, passphrase: Option<SecretString>) -> anyhow::Result<()> {
    let text = format!("{}\n", signer.to_bytes());
    let bytes = match passphrase {
        None => text.into_bytes(),
        Some(passphrase) => {
            let mut recipient = age::scrypt::Recipient::new(passphrase);
            recipient.set_work_factor(WORK_FACTOR);
            age::encrypt(&recipient, text.as_bytes()).context("cannot encrypt the key")?
        }
    };
    write_secret(path, &bytes)
}

/// A temporary file, which is private from the start, renamed: nobody ever reads half a key. Never overwrites.
fn write_secret(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = || format!("cannot create {}", path.display());
    let mut file = NamedTempFile::new_in(dir).with_context(cannot)?;
    file.write_all(bytes).with_context(cannot)?;
    file.as_file().sync_all().with_context(cannot)?;
    file.persist_noclobber(path).map_err(|error| error.error).with_context(cannot)?;
    Ok(())
}

/// Whether others than its owner may read the file.
#[must_use]
pub fn is_exposed(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

/// Writes a new identity to `path`, readable by its owner only. Never overwrites.
pub fn create_identity(path: &Path, now: DateTime<Utc>) -> anyhow::Result<Identity> {
    let identity = Identity::generate();
    let text = format!(
        "# created: {}\n# public key: {}\n{}\n",
        now.to_rfc3339_opts(SecondsFormat::Secs, true),
        identity.to_public(),
        identity.to_string().expose_secret()
    );
    write_secret(path, text.as_bytes())?;
    Ok(identity)
}

/// Reads the one identity in the file at `path`, in the format of `age-keygen`.
pub fn read_identity(path: &Path) -> anyhow::Result<Identity> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the identity file {}", path.display()))?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (Some(line), None) = (lines.next(), lines.next()) else {
        anyhow::bail!("{} must hold exactly one age identity", path.display());
    };
    line.parse().map_err(|reason: &str| anyhow::anyhow!("{} does not hold an age identity: {reason}", path.display()))
}

/// The node's identity in `dir`, made first if there is none.
pub fn node_identity(dir: &Path, now: DateTime<Utc>) -> anyhow::Result<Identity> {
    let path = dir.join(NODE_IDENTITY);
    if path.exists() {
        return read_identity(&path);
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // Another process may have been faster.
    create_identity(&path, now).or_else(|error| if path.exists() { read_identity(&path) } else { Err(error) })
}

/// Where a node and a requester keep what is theirs, unless told otherwise: `littoral` where the system keeps data.
pub fn default_data_dir() -> anyhow::Result<PathBuf> {
    if let Some(base) = std::env::var_os("XDG_DATA_HOME").filter(|base| !base.is_empty()) {
        return Ok(PathBuf::from(base).join("littoral"));
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let missing =
        "HOME is not set: give --data-dir or LITTORAL_DATA_DIR, or for a node --node-dir or LITTORAL_NODE_DIR";
    let home = home.ok_or_else(|| Failure::Usage(missing.into()))?;
    Ok(PathBuf::from(home).join(".local/share/littoral"))
}

/// The 32 bytes of a recipient's X25519 key, as the registry has them.
pub fn public_key_bytes(recipient: &Recipient) -> anyhow::Result<[u8; 32]> {
    let text = recipient.to_string();
    let bytes: Vec<u8> = CheckedHrpstring::new::<Bech32>(&text)?.byte_iter().collect();
    bytes.try_into().map_err(|_| anyhow::anyhow!("{text} is not an X25519 recipient"))
}

/// The recipient with these 32 bytes.
pub fn recipient_of(public_key: &[u8]) -> anyhow::Result<Recipient> {
    anyhow::ensure!(public_key.len() == 32, "an X25519 public key has 32 bytes, not {}", public_key.len());
    let text = bech32::encode::<Bech32>(AGE_HRP, public_key)?;
    text.parse().map_err(|reason: &str| anyhow::anyhow!("{text} is not a recipient: {reason}"))
}

/// The id under which a node registers unless told another: the hash of its encryption key.
#[must_use]
pub fn default_node_id(public_key: &[u8; 32]) -> B256 {
    keccak256(public_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    #[test]
    fn an_identity_file_is_private_is_read_back_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.txt");
        let made = create_identity(&path, now()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!is_exposed(&path));
        assert_eq!(read_identity(&path).unwrap().to_public(), made.to_public());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# created: 2027-01-15T08:00:00Z\n# public key: age1"), "{text}");
        assert!(create_identity(&path, now()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn files_without_exactly_one_identity_are_refused_without_quoting_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.txt");
        fs::write(&path, "# nothing\n").unwrap();
        assert!(read_identity(&path).err().unwrap().to_string().contains("exactly one"));
        fs::write(&path, "AGE-SECRET-KEY-1NONSENSE\n").unwrap();
        assert!(!read_identity(&path).err().unwrap().to_string().contains("NONSENSE"));
    }

    #[test]
    fn a_public_key_survives_the_registry() {
        let recipient = Identity::generate().to_public();
        let bytes = public_key_bytes(&recipient).unwrap();
        assert_eq!(recipient_of(&bytes).unwrap(), recipient);
        assert!(recipient_of(&bytes[..31]).is_err());
    }

    fn no_passphrase() -> anyhow::Result<SecretString> {
        anyhow::bail!("no passphrase")
    }

    #[test]
    fn the_key_file_wins_and_a_bad_key_is_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("account");
        let secret = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        fs::write(&path, format!("{secret}\n")).unwrap();
        let load = |file: Option<&Path>, inline: Option<&str>| load_signer(file, inline, no_passphrase);
        let signer = load(Some(&path), Some("0x01")).unwrap();
        assert_eq!(signer.address().to_string(), "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
        assert_eq!(load(None, Some(secret)).unwrap().address(), signer.address());
        assert!(!load(None, Some("12345secret")).unwrap_err().to_string().contains("12345secret"));
        assert!(load(None, None).unwrap_err().to_string().contains("LITTORAL_KEY"));
    }

    #[test]
    fn an_encrypted_key_is_read_with_its_passphrase_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("session.key");
        let signer = PrivateKeySigner::random();
        let passphrase = |text: &str| SecretString::from(text.to_owned());
        write_key(&path, &signer, Some(passphrase("correct horse"))).unwrap();
        assert!(!is_exposed(&path));
        let secret = signer.to_bytes().to_string();
        assert!(!String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(&secret[2..]));
        assert_eq!(read_key(&path, || Ok(passphrase("correct horse"))).unwrap().address(), signer.address());
        assert!(read_key(&path, || Ok(passphrase("wrong"))).unwrap_err().to_string().contains("cannot decrypt"));
        assert_eq!(read_key(&path, no_passphrase).unwrap_err().to_string(), "no passphrase");
        assert!(write_key(&path, &signer, None).is_err(), "it is not overwritten");
    }
}
