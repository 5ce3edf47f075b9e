//! `encrypt` and `decrypt` with age (X25519, binary format), as streams.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};
use serde::Deserialize;

use super::OpError;
use super::sink::Sink;

const BUFFER: usize = 1 << 16;
/// More would make the header longer than most inputs.
const MAX_RECIPIENTS: usize = 64;

/// The parameters of both operations: `{"recipients": ["age1…", …]}`, or `{"to": "age1…"}` for one.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Params {
    #[serde(default)]
    recipients: Vec<String>,
    to: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// The recipients that `params` names; at least one.
pub fn encrypt_params(params: &str) -> Result<Vec<Recipient>, OpError> {
    let recipients = parse(params)?;
    if recipients.is_empty() {
        return Err(OpError::BadParams("encrypt needs recipients: {\"recipients\": [\"age1…\"]}".into()));
    }
    Ok(recipients)
}

/// Those to whom the plaintext is to be encrypted again; none for the plaintext itself.
pub fn decrypt_params(params: &str) -> Result<Vec<Recipient>, OpError> {
    parse(params)
}

fn parse(params: &str) -> Result<Vec<Recipient>, OpError> {
    let params: Params = if params.is_empty() {
        Params::default()
    } else {
        serde_json::from_str(params).map_err(|error| OpError::BadParams(error.to_string()))?
    };
    let mut names = params.recipients;
    match params.to {
        Some(OneOrMany::One(name)) => names.push(name),
        Some(OneOrMany::Many(more)) => names.extend(more),
        None => {}
    }
    if names.len() > MAX_RECIPIENTS {
        return Err(OpError::BadParams(format!("{} recipients are more than {MAX_RECIPIENTS}", names.len())));
    }
    names.iter().map(|name| parse_recipient(name).map_err(OpError::BadParams)).collect()
}

/// Reads `age1…`.
pub fn parse_recipient(text: &str) -> Result<Recipient, String> {
    text.parse().map_err(|reason: &str| format!("{text:?} is not an age recipient (age1…): {reason}"))
}

/// Encrypts `input` to `recipients`.
pub fn encrypt(recipients: &[Recipient], input: File, mut sink: Sink) -> Result<Sink, OpError> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let done = seal(recipients, &mut input, &mut sink, OpError::Io);
    sink.judge(done)
}

/// Decrypts `input` with `identity`, and encrypts it again to `recipients` if there are any.
pub fn decrypt(identity: &Identity, recipients: &[Recipient], input: File, mut sink: Sink) -> Result<Sink, OpError> {
    let decryptor = Decryptor::new_buffered(BufReader::with_capacity(BUFFER, input)).map_err(not_for_us)?;
    let mut plain = decryptor.decrypt(std::iter::once(identity as &dyn age::Identity)).map_err(not_for_us)?;
    let done = if recipients.is_empty() {
        copy(&mut plain, &mut sink, damaged)
    } else {
        seal(recipients, &mut plain, &mut sink, damaged)
    };
    sink.judge(done)
}

fn seal(
    recipients: &[Recipient],
    input: &mut impl Read,
    output: &mut impl Write,
    read_error: fn(io::Error) -> OpError,
) -> Result<(), OpError> {
    let mut writer = encryptor(recipients)?.wrap_output(output)?;
    copy(input, &mut writer, read_error)?;
    writer.finish()?;
    Ok(())
}

fn encryptor(recipients: &[Recipient]) -> Result<Encryptor, OpError> {
    Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as &dyn age::Recipient))
        .map_err(|error| OpError::BadParams(error.to_string()))
}

fn not_for_us(error: DecryptError) -> OpError {
    match error {
        DecryptError::NoMatchingKeys => OpError::BadInput("it is not encrypted to this key".into()),
        DecryptError::Io(error) if !is_about_content(&error) => OpError::Io(error),
        other => OpError::BadInput(format!("it is not an age file that this key opens: {other}")),
    }
}

/// age reports a payload that was cut or changed as an I/O error of reading.
fn damaged(error: io::Error) -> OpError {
    if is_about_content(&error) {
        OpError::BadInput(format!("its ciphertext is damaged: {error}"))
    } else {
        OpError::Io(error)
    }
}

fn is_about_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// `io::copy`, but telling errors of reading from errors of writing.
fn copy(reader: &mut impl Read, writer: &mut impl Write, read_error: fn(io::Error) -> OpError) -> Result<(), OpError> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read_error(error)),
        };
        writer.write_all(&buffer[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use market::ContentId;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Runs `work` from a file with `input` to a file in `dir`; returns the output's bytes.
    fn through(
        dir: &Path,
        input: &[u8],
        limit: u64,
        work: impl FnOnce(File, Sink) -> Result<Sink, OpError>,
    ) -> Result<Vec<u8>, OpError> {
        let (from, to) = (dir.join("in"), dir.join("out"));
        fs::write(&from, input)?;
        let sink = Sink::create(&to, limit, CancellationToken::new())?;
        let output = work(File::open(&from)?, sink)?.finish()?;
        let bytes = fs::read(&to)?;
        assert_eq!(output.cid, ContentId::of(&bytes));
        assert_eq!(output.size, u64::try_from(bytes.len()).unwrap());
        Ok(bytes)
    }

    fn round_trip(plain: &[u8]) {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::generate();
        let to = [identity.to_public(), Identity::generate().to_public()];
        let cipher = through(dir.path(), plain, u64::MAX, |input, sink| encrypt(&to, input, sink)).unwrap();
        assert_ne!(cipher, plain);
        let back = through(dir.path(), &cipher, u64::MAX, |input, sink| decrypt(&identity, &[], input, sink)).unwrap();
        assert!(back == plain, "what comes back differs");
    }

    #[test]
    fn what_is_encrypted_is_decrypted_at_every_size() {
        for size in [0, 1, 65_535, 65_536, 65_537] {
            round_trip(&vec![7; size]);
        }
    }

    #[test]
    fn twenty_five_megabytes_pass_through() {
        let plain: Vec<u8> = (0..25_000_000_u32).map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)]).collect();
        round_trip(&plain);
    }

    #[test]
    fn decrypting_can_encrypt_again_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let (node, requester) = (Identity::generate(), Identity::generate());
        let sealed = through(dir.path(), b"secret", u64::MAX, |i, s| encrypt(&[node.to_public()], i, s)).unwrap();
        let again =
            through(dir.path(), &sealed, u64::MAX, |i, s| decrypt(&node, &[requester.to_public()], i, s)).unwrap();
        assert!(!again.windows(6).any(|window| window == b"secret"));
        let back = through(dir.path(), &again, u64::MAX, |i, s| decrypt(&requester, &[], i, s)).unwrap();
        assert_eq!(back, b"secret");
    }

    #[test]
    fn a_wrong_key_plain_input_and_damage_are_bad_input_and_final() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::generate();
        let sealed =
            through(dir.path(), &[3; 100_000], u64::MAX, |i, s| encrypt(&[identity.to_public()], i, s)).unwrap();
        let open = |key: &Identity, bytes: &[u8]| {
            through(dir.path(), bytes, u64::MAX, |input, sink| decrypt(key, &[], input, sink)).unwrap_err()
        };
        let mut flipped = sealed.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for error in [
            open(&Identity::generate(), &sealed),
            open(&identity, b"plain text"),
            open(&identity, b""),
            open(&identity, &flipped),
            open(&identity, &sealed[..sealed.len() - 1]),
            open(&identity, &sealed[..70_000]),
        ] {
            assert!(matches!(error, OpError::BadInput(_)), "{error:?}");
            assert!(!error.is_retryable());
        }
    }

    #[test]
    fn the_output_limit_and_cancelling_stop_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let to = [Identity::generate().to_public()];
        let error = through(dir.path(), &[0; 200_000], 100_000, |i, s| encrypt(&to, i, s)).unwrap_err();
        assert!(matches!(error, OpError::OutputTooLarge(100_000)), "{error:?}");
        let cancel = CancellationToken::new();
        cancel.cancel();
        let sink = Sink::create(&dir.path().join("out"), 1, cancel).unwrap();
        let error = encrypt(&to, File::open(dir.path().join("in")).unwrap(), sink).err().unwrap();
        assert!(matches!(error, OpError::Cancelled), "{error:?}");
    }

    #[test]
    fn params_name_recipients_in_either_form_and_nothing_else() {
        let key = Identity::generate().to_public().to_string();
        for params in
            [format!(r#"{{"recipients":["{key}"]}}"#), format!(r#"{{"to":"{key}"}}"#), format!(r#"{{"to":["{key}"]}}"#)]
        {
            assert_eq!(encrypt_params(&params).unwrap()[0].to_string(), key);
        }
        for params in ["", "{}", "[]", "null", r#"{"to":"age1nonsense"}"#, r#"{"key":"x"}"#, r#"{"to":5}"#, "{"] {
            let error = encrypt_params(params).unwrap_err();
            assert!(matches!(error, OpError::BadParams(_)) && !error.is_retryable(), "{params}: {error:?}");
        }
        assert!(decrypt_params("").unwrap().is_empty());
        let many = serde_json::json!({ "recipients": vec![key; MAX_RECIPIENTS + 1] }).to_string();
        assert!(encrypt_params(&many).unwrap_err().to_string().contains("more than"));
    }
}
