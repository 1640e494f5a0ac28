//! The operator's page, over plain HTTP: what is true whatever browser asks.

use outbox_relay::admin::{self, AdminState};
use outbox_relay::config::{Role, Token};
use outbox_relay::metrics::Metrics;
use outbox_relay::operator::Operator;
use outbox_relay::operator::backlog::Sampler;
use outbox_relay::operator::history::History;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use ureq::http::{Request, Response};

use crate::support::stage::Stage;
use crate::support::{DEADLINE, copying, pair};

/// The admin server beside a relay whose batches the test does by hand.
struct Site {
    url: String,
    stop: CancellationToken,
    tasks: (JoinHandle<std::io::Result<()>>, JoinHandle<()>),
}

/// What a browser got.
struct Got {
    status: u16,
    headers: ureq::http::HeaderMap,
    text: String,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Site {
    async fn open(stage: &Stage, tokens: Vec<Token>) -> Site {
        let operator = Operator::new(&stage.config).unwrap();
        operator.attach(stage.shared().await);
        let stop = CancellationToken::new();
        let (sampler, backlog) = Sampler::new(operator.clone());
        sampler.run_once().await.unwrap();
        let sampler = tokio::spawn(sampler.run(stop.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = AdminState {
            operator,
            backlog,
            tokens,
            metrics: Metrics::default(),
            history: History::default(),
            config: stage.config.clone(),
        };
        let server = tokio::spawn(admin::serve(listener, state, stop.clone()));
        Site { url, stop, tasks: (server, sampler) }
    }

    async fn close(self) {
        self.stop.cancel();
        self.tasks.0.await.unwrap().unwrap();
        self.tasks.1.await.unwrap();
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Got {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !headers.iter().any(|(name, _)| *name == "Accept") {
            request = request.header("Accept", "text/html,*/*;q=0.8");
        }
        if method == "POST" {
            request = request.header("Content-Type", "application/x-www-form-urlencoded");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.to_owned()).unwrap();
        let call = move || -> Response<ureq::Body> {
            let config = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .timeout_global(Some(DEADLINE))
                .build();
            ureq::Agent::from(config).run(request).expect("an answer")
        };
        let mut response = tokio::task::spawn_blocking(call).await.unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        Got { status: response.status().as_u16(), headers: response.headers().clone(), text }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Got {
        self.ask("GET", path, headers, "").await
    }

    /// A form of the page itself.
    async fn send(&self, path: &str, cookie: &str, body: &str) -> Got {
        self.ask("POST", path, &[("Sec-Fetch-Site", "same-origin"), ("Cookie", cookie)], body).await
    }

    async fn sign_in(&self, secret: &str) -> String {
        let got = self.send("/sign-in", "", &format!("token={secret}&next=%2Faudit")).await;
        assert_eq!((got.status, got.header("location")), (303, "/audit"), "{}", got.text);
        got.header("set-cookie").split(';').next().unwrap().to_owned()
    }
}

fn tokens() -> Vec<Token> {
    vec![
        Token { name: "ops".into(), role: Role::Admin, secret: "all-of-it".into() },
        Token { name: "board".into(), role: Role::Read, secret: "only-look".into() },
    ]
}

const PAGES: [&str; 4] = ["/", "/failures", "/events?status=failed", "/audit"];

#[tokio::test]
async fn pages_ask_for_a_token_and_go_on_to_what_was_wanted() {
    let stage = Stage::new().await;
    let site = Site::open(&stage, tokens()).await;
    let got = site.get("/", &[]).await;
    assert_eq!((got.status, got.header("location")), (303, "/sign-in"));
    let got = site.get("/events?status=failed", &[]).await;
    assert_eq!(got.header("location"), "/sign-in?next=%2Fevents%3Fstatus%3Dfailed");
    let got = site.get(got.header("location"), &[]).await;
    assert!(got.status == 200 && got.text.contains("value=\"/events?status=failed\""), "{}", got.text);
    assert_eq!(site.get("/", &[("Accept", "application/json")]).await.status, 401, "programs get a problem");

    let got = site.send("/sign-in", "", "token=wrong").await;
    assert_eq!((got.status, got.header("set-cookie")), (401, ""));
    assert!(got.text.contains("This token is not known"), "{}", got.text);
    let got = site.ask("POST", "/sign-in", &[("Sec-Fetch-Site", "cross-site")], "token=all-of-it").await;
    assert_eq!((got.status, got.header("set-cookie")), (403, ""), "a form from elsewhere");
    let got = site.send("/sign-in", "", "token=all-of-it&next=https%3A%2F%2Fevil.example").await;
    assert_eq!(got.header("location"), "/", "nobody is led elsewhere");
    for word in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="] {
        assert!(got.header("set-cookie").contains(word), "{}", got.header("set-cookie"));
    }
    assert!(!got.header("set-cookie").contains("Secure"), "over plain HTTP it would never come back");
    let origin = site.url.replace("http://", "https://");
    let got = site.ask("POST", "/sign-in", &[("Origin", &origin)], "token=all-of-it").await;
    assert!(got.header("set-cookie").contains("Secure"), "{}", got.header("set-cookie"));

    for secret in ["all-of-it", "only-look"] {
        let cookie = site.sign_in(secret).await;
        for path in PAGES {
            assert_eq!(site.get(path, &[("Cookie", &cookie)]).await.status, 200, "{path}");
        }
        assert_eq!(site.get("/nowhere", &[("Cookie", &cookie)]).await.status, 404);
        let got = site.send("/sign-out", &cookie, "").await;
        assert!(got.status == 303 && got.header("set-cookie").contains("Max-Age=0"));
    }
    site.close().await;
}

#[tokio::test]
async fn a_session_may_do_what_its_token_may_and_only_from_the_page() {
    let stage = Stage::new().await;
    let site = Site::open(&stage, tokens()).await;
    let (ops, board) = (site.sign_in("all-of-it").await, site.sign_in("only-look").await);
    let pause = async |cookie: &str, from: &str| {
        let headers = [("Cookie", cookie), ("Sec-Fetch-Site", from), ("Content-Type", "application/json")];
        let request = ureq::http::Request::builder().method("POST").uri(format!("{}/v1/pause", site.url));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body("{\"reason\": \"x\"}").unwrap();
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let call = move || ureq::Agent::from(config).run(request).expect("an answer").status().as_u16();
        tokio::task::spawn_blocking(call).await.unwrap()
    };
    assert_eq!(pause(&ops, "cross-site").await, 403);
    assert_eq!(pause(&ops, "none").await, 401);
    assert_eq!(pause(&board, "same-origin").await, 403);
    assert_eq!(pause(&ops, "same-origin").await, 200);
    site.close().await;

    // Another process, with the same tokens; and one where the token was taken away.
    let site = Site::open(&stage, tokens()).await;
    assert_eq!(site.get("/", &[("Cookie", &ops)]).await.status, 200);
    site.close().await;
    let site = Site::open(&stage, tokens().split_off(1)).await;
    assert_eq!(site.get("/", &[("Cookie", &ops)]).await.status, 303);
    assert_eq!(site.get("/", &[("Cookie", &board)]).await.status, 200);
    site.close().await;
}

#[tokio::test]
async fn pages_load_nothing_but_their_own_files_and_are_nobodys_frame() {
    let stage = Stage::new().await;
    let site = Site::open(&stage, Vec::new()).await;
    assert_eq!(site.get("/sign-in", &[]).await.header("location"), "/", "where no token is needed");
    for path in PAGES.into_iter().chain(["/nowhere", "/events/1"]) {
        let got = site.get(path, &[]).await;
        assert!([200, 404].contains(&got.status), "{path}: {}", got.status);
        if path != "/nowhere" {
            let policy = got.header("content-security-policy");
            for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'self'"] {
                assert!(policy.contains(part), "{path}: {policy}");
            }
            assert!(!policy.contains("unsafe"), "{policy}");
        }
        assert!(got.header("content-type").starts_with("text/html"), "{path}");
        for forbidden in ["style=", "<style", " onclick", "http://", "https://"] {
            assert!(!got.text.contains(forbidden), "{path} has {forbidden}");
        }
    }
    let page = site.get("/", &[]).await.text;
    let assets: Vec<&str> = page.split('"').filter(|part| part.starts_with("/assets/")).collect();
    assert_eq!(assets.len(), 3, "{assets:?}");
    for asset in assets {
        let got = site.get(asset, &[]).await;
        let tag = got.header("etag").to_owned();
        assert!(got.status == 200 && !tag.is_empty(), "{asset}");
        assert_eq!(site.get(asset, &[("If-None-Match", &tag)]).await.status, 304, "{asset}");
    }
    site.close().await;
}

#[tokio::test]
async fn what_events_and_databases_say_is_never_markup() {
    let stage = Stage::with(|config| config.retry.attempts = 1).await;
    let hostile = "<script>alert(1)</script>\"'<img src=x onerror=alert(1)>";
    let function = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION '<b>%</b>', NEW.name; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse();";
    stage.pair.new.run(function).await;
    let payload = serde_json::json!({"id": 7, "name": hostile, "version": 1, "long": "x".repeat(50_000)}).to_string();
    let failed = stage.event("User", hostile, "UserCreated", &payload).await;
    let unmapped = stage.event(hostile, hostile, hostile, &payload).await;
    let held = stage.event("User", hostile, hostile, &payload).await;
    let site = Site::open(&stage, Vec::new()).await;
    let shared = stage.shared().await;
    stage.drain_by_hand(&shared).await;
    let query = serde_json::json!(hostile).to_string();
    let mut shown = 0;
    for path in [
        "/".to_owned(),
        "/failures".to_owned(),
        format!("/events/{failed}"),
        format!("/events/{unmapped}"),
        format!("/events/{held}"),
        format!(
            "/events?aggregate_type=User&status=failed&aggregate_id={}",
            query.replace(['"', '\\', '<', '>', ' ', '\''], "%3C")
        ),
        "/events?status=failed".to_owned(),
        "/events?status=pending".to_owned(),
    ] {
        let got = site.get(&path, &[]).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text);
        for forbidden in ["<script>", "<img", "<b>"] {
            assert!(!got.text.contains(forbidden), "{path} has {forbidden}:\n{}", got.text);
        }
        shown += got.text.matches("&lt;script&gt;").count();
    }
    assert!(shown > 6, "it is shown, as text: {shown}");
    let got = site.get(&format!("/events/{failed}"), &[]).await;
    assert!(got.text.contains("<summary>All "), "a long payload is cut, with a way to all of it");
    site.close().await;
}

#[tokio::test]
async fn who_holds_a_lane_at_this_moment_is_told() {
    let stage = Stage::new().await;
    let site = Site::open(&stage, Vec::new()).await;
    let page = site.get("/", &[]).await.text;
    assert!(page.contains("No lane is held at this moment."), "{page}");
    let mut holder = stage.pair.legacy.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM outbox_relay.lane WHERE lane = 3 FOR UPDATE").execute(&mut *holder).await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *holder).await.unwrap();
    // The page asks the database once a second.
    crate::support::eventually(DEADLINE, "the holder is told", || async {
        let page = site.get("/", &[]).await.text;
        page.contains("lane 3, for ") && page.contains(&format!(">{pid}<"))
    })
    .await;
    holder.rollback().await.unwrap();
    site.close().await;
}

#[tokio::test]
async fn how_far_the_migration_has_come_is_told_in_a_sentence() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    let site = Site::open(&stage, Vec::new()).await;
    let page = site.get("/", &[]).await.text;
    assert!(page.contains("The table has no first copy yet: only what events bring is in the new database."), "{page}");
    copying::copy(&stage).await;
    // The page asks the databases now and then.
    crate::support::eventually(DEADLINE, "the copy is told", || async {
        let page = site.get("/", &[]).await.text;
        page.contains("The table is copied and has not been verified yet.") && page.contains("done: 20 rows")
    })
    .await;
    site.close().await;
}
