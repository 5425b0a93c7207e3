//! The API over HTTPS, as a remote client uses it with curl: tokens, webhooks, events.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::{
    command::{output, output_text, run_with_input},
    lab::{api::Answer, wait_until},
    paths,
};

use crate::{
    Story,
    certificates::Authority,
    fixture::{Fixture, PATIENCE, web},
};

pub(crate) const STORIES: [Story; 1] = [("remote_clients_use_https_and_tokens", https)];

/// The API's port.
const PORT: u16 = 9470;
/// How long an agent that cannot run may take to report it, in seconds.
const REFUSAL: &str = "20";
/// The exit code of `timeout` where it had to end the command.
const TIMED_OUT: i32 = 124;

/// A node's API as remote clients see it.
struct Site<'a> {
    fixture: &'a Fixture,
    address: String,
    /// Its certificate's authority, which the client trusts.
    authority: String,
    /// The certificate of another authority.
    stranger: String,
}

impl Site<'_> {
    /// curl's answer from a path or a whole URL.
    fn curl(&self, token: Option<&str>, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let mut curl = self.command(path)?;
        curl.args(["--request", method, "--write-out", "\n%{http_code}"]);
        if let Some(body) = body {
            curl.args(["--header", "content-type: application/json"]);
            curl.args(["--data", &body.to_string()]);
        }
        let output = run_with_input(&mut curl, configuration(token).as_bytes())?;
        let (body, status) = output.rsplit_once('\n').context("curl printed no status")?;
        Ok(Answer {
            status: status.parse().with_context(|| format!("curl printed {output}"))?,
            body: body.to_owned(),
        })
    }

    /// A curl on the client that trusts the authority and reads its token from standard input.
    fn command(&self, path: &str) -> Result<Command> {
        let url = match path.starts_with('/') {
            true => format!("https://{}{path}", self.address),
            false => path.to_owned(),
        };
        let arguments = [
            "curl",
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--config",
            "-",
        ];
        let more = ["--max-time", "30", "--cacert", &self.authority, &url];
        self.fixture
            .lab
            .command("client", arguments.into_iter().chain(more))
    }

    /// Expects a status, and returns the answer's JSON.
    fn expect(
        &self,
        status: u16,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let answer = self.curl(token, method, path, body)?;
        ensure!(answer.status == status, "{method} {path}: {answer:?}");
        serde_json::from_str(&answer.body).with_context(|| format!("no JSON: {answer:?}"))
    }
}

/// All users of a machine can read command lines, so tokens do not belong there.
fn configuration(token: Option<&str>) -> String {
    let header = |token| format!("header = \"Authorization: Bearer {token}\"\n");
    token.map(header).unwrap_or_default()
}

fn https() -> Result<()> {
    let mut fixture = Fixture::up("orch-https", 1)?;
    let address = format!("{}:{PORT}", fixture.lab.address("node1")?);
    let folder = fixture.lab.state().data.join("https");
    fs::create_dir_all(&folder)?;
    let authority = Authority::new("lab")?;
    let issued = authority.issue("api", vec![fixture.lab.address("node1")?])?;
    let stranger = Authority::new("stranger")?;
    let other = authority.issue("other", vec![fixture.lab.address("node1")?])?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.join(name);
        fs::write(&path, text)?;
        path.to_str()
            .map(str::to_owned)
            .context("the lab's path is not UTF-8")
    };
    let trusted = file("ca.pem", &authority.pem())?;
    let strangers = file("stranger.pem", &stranger.pem())?;
    let certificate = file("api.pem", &issued.certificate)?;
    let key = file("api.key", &issued.key)?;

    let empty = file("empty.pem", "no certificate\n")?;
    let others_key = file("other.key", &other.key)?;
    let listen = ["--api-listen", &address];
    expect_refusal(&fixture, &listen, "--api-certificate")?;
    for (certificate, key, error) in [
        ("/run/missing.pem", key.as_str(), "cannot read /run/missing.pem"),
        (&empty, &key, &format!("cannot read {empty} as PEM")),
        (&certificate, &empty, &format!("cannot read {empty} as PEM")),
        (
            &certificate,
            &others_key,
            "cannot be used for TLS: keys may not be consistent",
        ),
    ] {
        let files = ["--api-certificate", certificate, "--api-key", key];
        expect_refusal(&fixture, &[&listen[..], &files].concat(), error)?;
        // It does not wait for a store that does not answer, either.
        let store = ["--etcd", "http://127.0.0.1:1"];
        expect_refusal(&fixture, &[&listen[..], &files, &store].concat(), error)?;
    }

    let more = [
        "--api-listen",
        &address,
        "--api-certificate",
        &certificate,
        "--api-key",
        &key,
    ];
    let more = more.map(str::to_owned).to_vec();
    fixture.more.insert("node1".to_owned(), more);
    fixture.start_agent("node1")?;
    let site = Site {
        fixture: &fixture,
        address,
        authority: trusted,
        stranger: strangers,
    };
    let outcome = tokens(&site).and_then(|()| webhook(&site));
    fixture.end(outcome)
}

/// The agent ends with this error, before it changes anything.
fn expect_refusal(fixture: &Fixture, arguments: &[&str], expected: &str) -> Result<()> {
    let program = paths::program("mesh-agent");
    let program = program.to_str().context("the path is not UTF-8")?;
    let mut agent = fixture
        .lab
        .command("node1", ["timeout", REFUSAL, program, "run", "--orchestrator"])?;
    agent.args(["--state-dir", "/run/refused"]).args(arguments);
    let output = output(&mut agent)?;
    let text = output_text(&output);
    ensure!(
        !output.status.success() && output.status.code() != Some(TIMED_OUT) && text.contains(expected),
        "with {arguments:?} the agent ended with {} and printed: {text}",
        output.status
    );
    Ok(())
}

/// The permissions of tokens.
fn tokens(site: &Site<'_>) -> Result<()> {
    let token = |name: &str, scope: &str| {
        let arguments = ["token", "create", "--scope", scope, name];
        site.fixture.lab.meshctl("node1", &arguments)
    };
    let reader = token("reader", "services:read")?;
    let writer = token("writer", "services:write")?;
    let services = "/v1/services";
    let body = web(2, "start-first");

    let answer = site.expect(401, None, "GET", services, None)?;
    ensure!(answer.to_string().contains("Authorization: Bearer"), "{answer}");
    let (name, _) = reader.split_once('.').context("a token has a dot")?;
    for wrong in [
        format!("{name}.{}", "A".repeat(43)),
        format!("{reader}A"),
        "mesh_".to_owned(),
    ] {
        site.expect(401, Some(&wrong), "GET", services, None)?;
    }
    ensure!(
        site.expect(200, Some(&reader), "GET", services, None)? == json!([]),
        "there are services"
    );
    let answer = site.expect(403, Some(&reader), "POST", services, Some(&body))?;
    ensure!(answer.to_string().contains("services:write"), "{answer}");
    // Each scope is for one kind of object.
    site.expect(403, Some(&writer), "GET", "/v1/secrets", None)?;
    site.expect(
        403,
        Some(&writer),
        "POST",
        "/v1/tokens",
        Some(&json!({"name": "more", "scopes": ["all"]})),
    )?;
    site.expect(200, None, "GET", "/v1/openapi.json", None)?;

    expect_no_answer(
        site,
        &format!("http://{}{services}", site.address),
        &[],
        "curl: (",
    )?;
    // The last of the two counts.
    expect_no_answer(site, services, &["--cacert", &site.stranger], "certificate")?;

    site.expect(201, Some(&writer), "POST", services, Some(&body))?;
    site.fixture.until_running(2)?;

    site.fixture.lab.meshctl("node1", &["token", "rm", "writer"])?;
    site.expect(401, Some(&writer), "GET", services, None)?;
    let scale = json!({"replicas": 0});
    site.expect(401, Some(&writer), "POST", "/v1/services/web/scale", Some(&scale))?;
    Ok(())
}

/// The server sends no status at all.
fn expect_no_answer(site: &Site<'_>, path: &str, more: &[&str], expected: &str) -> Result<()> {
    let mut curl = site.command(path)?;
    curl.args(more).args(["--write-out", "%{http_code}"]);
    match run_with_input(&mut curl, b"") {
        Ok(answer) => bail!("{path} was answered: {answer}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains(expected) && text.ends_with("000"), "{text}");
            Ok(())
        }
    }
}

/// A webhook's URL, which needs no token, rolls the service, and the stream of events reports it.
fn webhook(site: &Site<'_>) -> Result<()> {
    let lab = &site.fixture.lab;
    let listener = lab.meshctl(
        "node1",
        &["token", "create", "--scope", "services:read", "listener"],
    )?;
    let url = lab.meshctl("node1", &["webhook", "create", "web", "deploy"])?;
    let beginning = format!("https://{}/v1/webhooks/", site.address);
    ensure!(url.starts_with(&beginning), "{url}");

    let folder = lab.state().data.join("https");
    let (head, events) = (folder.join("events.head"), folder.join("events"));
    let mut curl = site.command("/v1/events")?;
    curl.arg("--dump-header").arg(&head);
    curl.args(["--no-buffer", "--output"]).arg(&events);
    let mut curl = curl.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut input = curl.stdin.take().context("curl takes no input")?;
    input.write_all(configuration(Some(&listener)).as_bytes())?;
    drop(input);
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    wait_until("the stream of events", Duration::from_secs(10), || {
        let text = read(&head);
        ensure!(
            text.contains("200 OK") && text.contains("text/event-stream"),
            "{text}"
        );
        Ok(())
    })?;

    let before = site.fixture.containers("node1")?;
    site.expect(404, None, "POST", &format!("{beginning}{}", "A".repeat(43)), None)?;
    let answer = site.expect(200, None, "POST", &url, Some(&json!({"pushed": "anything"})))?;
    // No registry answers here, so the tag stays as it is; the service is rolled anyway.
    let warning = answer["warnings"][0].as_str().unwrap_or_default();
    ensure!(warning.contains("mesh-lab/server:latest"), "{answer}");
    site.fixture.until_updated()?;
    let after = site.fixture.containers("node1")?;
    ensure!(
        after.len() == 2 && after.is_disjoint(&before),
        "{before:?} {after:?}"
    );

    wait_until("the roll to be reported", PATIENCE, || {
        let text = read(&events);
        for event in [
            "event: service\n",
            "event: task\n",
            "\"name\":\"web\"",
            "\"name\":\"web.2\"",
        ] {
            ensure!(text.contains(event), "no {event} in {text}");
        }
        Ok(())
    })?;
    lab.meshctl("node1", &["token", "rm", "listener"])?;
    wait_until(
        "the stream to end with its token",
        Duration::from_secs(10),
        || {
            let status = curl.try_wait()?.context("it goes on")?;
            ensure!(status.success(), "curl ended with {status}");
            Ok(())
        },
    )?;

    lab.meshctl("node1", &["webhook", "disable", "web", "deploy"])?;
    site.expect(404, None, "POST", &url, None)?;
    let history = site.fixture.api("node1")?.get("/v1/services/web/history")?;
    ensure!(history.to_string().contains("webhook deploy"), "{history:#}");
    Ok(())
}
