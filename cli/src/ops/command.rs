//! `command`: the operator's own program, input on its standard input, output from its standard output.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::sink::Sink;
use super::{OpError, Output, Task};

const BUFFER: usize = 1 << 16;
/// How much of what the program says goes into the failure's reason.
const STDERR_TAIL: usize = 2_000;
/// Longest params that are handed over; the system limits one environment variable to 128 KiB.
const MAX_PARAMS: usize = 100_000;

/// The operator's program and its limit in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandSpec {
    program: String,
    args: Vec<String>,
    time_limit: Duration,
}

/// Kills the program and all that it started and that has not left its process group. Once: afterwards the number may
/// be somebody else's.
struct Group(AtomicI32);

impl Group {
    fn of(child: &Child) -> Self {
        Self(AtomicI32::new(child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0)))
    }

    /// Writes down what runs, for the case that this process is killed.
    fn note(&self, file: &Path) -> io::Result<()> {
        match Pid::from_raw(self.0.load(Ordering::Relaxed)).and_then(|pid| Some((pid, started(pid)?))) {
            Some((pid, start)) => std::fs::write(file, format!("{} {start}", pid.as_raw_nonzero())),
            None => Ok(()),
        }
    }

    fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.0.swap(0, Ordering::Relaxed)) {
            // An error means that the group is gone, which is the aim.
            kill_process_group(pid, Signal::KILL).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where the running program of the job with this `output` is written down.
fn pid_file(output: &Path) -> PathBuf {
    output.with_extension("pid")
}

/// When the process started, in the system's ticks, which tells it from a later one with the same number. Nothing if
/// there is none, or where the system does not say.
fn started(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The program's name, in brackets, may hold anything; the start is the 20th field after it.
    stat.rsplit_once(") ")?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Kills the program that a killed node left behind on the job with this `output`, and all that it started.
pub fn kill_orphan(output: &Path) {
    let Ok(text) = std::fs::read_to_string(pid_file(output)) else { return };
    let Some((pid, start)) = text.split_once(' ') else { return };
    let (Some(pid), Ok(start)) = (pid.parse().ok().and_then(Pid::from_raw), start.parse::<u64>()) else { return };
    if started(pid) == Some(start) {
        // An error means that the group is gone, which is the aim.
        kill_process_group(pid, Signal::KILL).ok();
    }
}

impl CommandSpec {
    /// Splits `line` as a shell would, without being one: no variables, pipes or patterns.
    pub fn parse(line: &str, time_limit: Duration) -> Result<Self, String> {
        let words = shlex::split(line).ok_or_else(|| "has an unclosed quote".to_owned())?;
        let mut words = words.into_iter();
        let program = words.next().filter(|word| !word.is_empty()).ok_or_else(|| "names no program".to_owned())?;
        Ok(Self { program, args: words.collect(), time_limit })
    }

    /// Runs the program in the task's scratch directory with a clean environment: `PATH`, `LANG`, `HOME` and `TMPDIR`
    /// (the scratch directory), `LITTORAL_JOB_ID` and `LITTORAL_PARAMS`.
    pub async fn run(&self, task: &Task<'_>, max_output: u64) -> Result<Output, OpError> {
        if task.params.len() > MAX_PARAMS || task.params.contains('\0') {
            return Err(OpError::BadParams(format!("must be at most {MAX_PARAMS} bytes without NUL")));
        }
        let mut child = self.spawn(task)?;
        let group = Group::of(&child);
        group.note(&pid_file(task.output))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(OpError::Io(io::Error::other("the command has no pipes")));
        };
        let sink = Sink::create(task.output, max_output, task.cancel.clone())?;
        let work = async {
            let ended = async {
                let status = child.wait().await;
                // What it leaves behind may hold the pipes open for ever.
                group.kill();
                status.map_err(OpError::Io)
            };
            tokio::try_join!(collect(stdout, sink), tail_of(stderr), ended)
        };
        let (sink, stderr, status) = tokio::select! {
            done = tokio::time::timeout(self.time_limit, work) => done.map_err(|_| OpError::TimedOut(self.time_limit))??,
            () = task.cancel.cancelled() => return Err(OpError::Cancelled),
        };
        if !status.success() {
            return Err(OpError::CommandFailed { status, stderr });
        }
        tokio::task::spawn_blocking(move || sink.finish())
            .await
            .map_err(|error| OpError::Io(io::Error::other(error)))?
    }

    fn spawn(&self, task: &Task<'_>) -> Result<Child, OpError> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        Command::new(&self.program)
            .args(&self.args)
            .env_clear()
            .env("PATH", path)
            .env("LANG", "C.UTF-8")
            .env("HOME", task.scratch)
            .env("TMPDIR", task.scratch)
            .env("LITTORAL_JOB_ID", task.job_id.to_string())
            .env("LITTORAL_PARAMS", task.params)
            .current_dir(task.scratch)
            .stdin(Stdio::from(std::fs::File::open(task.input)?))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot start {}: {error}", self.program)).into())
    }
}

async fn collect(stdout: ChildStdout, mut sink: Sink) -> Result<Sink, OpError> {
    use std::io::Write;

    let mut stdout = BufReader::with_capacity(BUFFER, stdout);
    let mut buffer = vec![0; BUFFER];
    loop {
        match stdout.read(&mut buffer).await? {
            0 => return Ok(sink),
            read => {
                let written = sink.write_all(&buffer[..read]).map_err(OpError::Io);
                sink = sink.judge(written)?;
            }
        }
    }
}

/// The last bytes of what the program says, with what is not text made visible.
async fn tail_of(mut stderr: ChildStderr) -> Result<String, OpError> {
    let mut tail: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 4096];
    loop {
        match stderr.read(&mut buffer).await? {
            0 => return Ok(String::from_utf8_lossy(&tail).replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")),
            read => {
                tail.extend_from_slice(&buffer[..read]);
                tail.drain(..tail.len().saturating_sub(STDERR_TAIL));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use alloy::primitives::B256;
    use market::ContentId;
    use tokio_util::sync::CancellationToken;

    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        cancel: CancellationToken,
        limit: u64,
    }

    impl Bench {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), cancel: CancellationToken::new(), limit: 1 << 30 }
        }

        fn path(&self) -> &Path {
            self.dir.path()
        }

        async fn run(&self, line: &str, secs: f64, input: &[u8]) -> Result<Vec<u8>, OpError> {
            let (from, to) = (self.path().join("in"), self.path().join("out"));
            fs::write(&from, input)?;
            let task = Task {
                job_id: B256::repeat_byte(9),
                operation: super::super::COMMAND,
                params: r#"{"a":1}"#,
                input: &from,
                output: &to,
                scratch: self.path(),
                cancel: &self.cancel,
            };
            let spec = CommandSpec::parse(line, Duration::from_secs_f64(secs)).unwrap();
            let output = spec.run(&task, self.limit).await?;
            let bytes = fs::read(&to)?;
            assert_eq!(output, Output { cid: ContentId::of(&bytes), size: u64::try_from(bytes.len()).unwrap() });
            Ok(bytes)
        }
    }

    /// Whether the process whose id is in `file` is still there.
    fn is_alive(file: &Path) -> bool {
        let pid = fs::read_to_string(file).unwrap();
        fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn assert_dies(file: &Path) {
        let start = Instant::now();
        while is_alive(file) {
            assert!(start.elapsed() < Duration::from_secs(5), "the grandchild lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[tokio::test]
    async fn input_goes_in_and_output_comes_out() {
        let bench = Bench::new();
        assert_eq!(bench.run("tr a-z A-Z", 20.0, b"hello").await.unwrap(), b"HELLO");
        assert_eq!(bench.run("cat", 20.0, b"").await.unwrap(), b"");
        let large = vec![5; 25_000_000];
        assert!(bench.run("cat", 60.0, &large).await.unwrap() == large);
        assert_eq!(bench.run("true", 20.0, &large).await.unwrap(), b"", "a program need not read its input");
    }

    #[tokio::test]
    async fn the_environment_is_clean_and_nothing_is_expanded() {
        let bench = Bench::new();
        let text = String::from_utf8(bench.run("env", 20.0, b"").await.unwrap()).unwrap();
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["HOME", "LANG", "LITTORAL_JOB_ID", "LITTORAL_PARAMS", "PATH", "TMPDIR"]);
        assert!(text.contains(r#"LITTORAL_PARAMS={"a":1}"#), "{text}");
        assert_eq!(bench.run("printf '%s' '$HOME | *'", 20.0, b"").await.unwrap(), b"$HOME | *");
    }

    #[tokio::test]
    async fn a_failing_program_is_quoted() {
        let error = Bench::new().run("sh -c 'echo out; echo no such luck >&2; exit 3'", 20.0, b"").await.unwrap_err();
        assert!(error.is_retryable());
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("no such luck"), "{text}");
        let error = Bench::new().run("/no/such/program", 20.0, b"").await.unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
        let long = Bench::new().run("sh -c 'seq 100000 >&2; exit 1'", 20.0, b"").await.unwrap_err().to_string();
        assert!(long.len() < 3_000 && long.contains("100000"), "only the tail is kept");
    }

    #[tokio::test]
    async fn too_long_kills_the_grandchildren_too() {
        let bench = Bench::new();
        let start = Instant::now();
        let error = bench.run("sh -c 'sleep 300 & echo $! > pid; wait'", 0.5, b"").await.unwrap_err();
        assert!(matches!(error, OpError::TimedOut(_)) && error.is_retryable(), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_dies(&bench.path().join("pid"));
    }

    #[tokio::test]
    async fn a_grandchild_left_behind_does_not_hold_up_the_result() {
        let bench = Bench::new();
        let start = Instant::now();
        let output = bench.run("sh -c 'sleep 300 & echo $! > pid; echo done'", 60.0, b"").await.unwrap();
        assert_eq!(output, b"done\n");
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_dies(&bench.path().join("pid"));
    }

    #[tokio::test]
    async fn too_much_output_kills_the_program() {
        let mut bench = Bench::new();
        bench.limit = 1_000_000;
        let error = bench.run("sh -c 'echo $$ > pid; exec cat /dev/zero'", 60.0, b"").await.unwrap_err();
        assert!(matches!(error, OpError::OutputTooLarge(1_000_000)), "{error:?}");
        assert_dies(&bench.path().join("pid"));
    }

    #[tokio::test]
    async fn cancelling_kills_the_program() {
        let bench = Bench::new();
        let cancel = bench.cancel.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            cancel.cancel();
        });
        let error = bench.run("sh -c 'echo $$ > pid; sleep 300'", 60.0, b"").await.unwrap_err();
        assert!(matches!(error, OpError::Cancelled), "{error:?}");
        assert_dies(&bench.path().join("pid"));
    }

    #[tokio::test]
    async fn what_a_killed_node_left_running_is_killed_and_nothing_else() {
        let bench = Bench::new();
        let output = bench.path().join("out");
        let mut child = Command::new("sh")
            .args(["-c", "sleep 300 & echo $! > pid; wait"])
            .current_dir(bench.path())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Group::of(&child);
        group.note(&pid_file(&output)).unwrap();
        while fs::read_to_string(bench.path().join("pid")).is_ok_and(|pid| !pid.ends_with('\n'))
            || !bench.path().join("pid").exists()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let record = fs::read_to_string(pid_file(&output)).unwrap();
        // Another process that has got the same number by now.
        let (pid, start) = record.split_once(' ').unwrap();
        fs::write(pid_file(&output), format!("{pid} {}", start.parse::<u64>().unwrap() - 1)).unwrap();
        kill_orphan(&output);
        assert!(is_alive(&bench.path().join("pid")));
        fs::write(pid_file(&output), record).unwrap();
        kill_orphan(&output);
        assert_dies(&bench.path().join("pid"));
        assert!(!child.wait().await.unwrap().success());
        kill_orphan(&output);
    }

    #[test]
    fn lines_that_name_no_program_are_refused() {
        for line in ["", "   ", "''", "cat 'x"] {
            assert!(CommandSpec::parse(line, Duration::from_secs(1)).is_err(), "{line:?}");
        }
    }
}
