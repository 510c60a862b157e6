//! The administrator's routes: who may call them, what they show, what each deed ends, and what is written down of it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::every_route::{CONTRACT, NOBODYS_ID, Needs, bare, filled};
use crate::stage::{Actor, Answer, IDLE_TIMEOUT, Stage, TICK, email_of, password_of};

const SECOND: Duration = Duration::from_secs(1);

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_string()
}

async fn user_id(actor: &Actor) -> String {
    text(&actor.get("/me").await.is(200).json()["user"]["id"])
}

async fn session_id(actor: &Actor) -> String {
    text(&actor.get("/me").await.is(200).json()["session"]["id"])
}

async fn set_role(admin: &Actor, user: &str, role: &str) -> Answer {
    admin.put(&format!("/admin/users/{user}/role"), json!({"role": role})).await
}

async fn disable(admin: &Actor, user: &str) -> Answer {
    admin.poke(&format!("/admin/users/{user}/disable")).await
}

async fn enable(admin: &Actor, user: &str) -> Answer {
    admin.poke(&format!("/admin/users/{user}/enable")).await
}

async fn users(admin: &Actor, query: &str) -> Vec<Value> {
    admin.get(&format!("/admin/users{query}")).await.is(200).json()["users"].as_array().expect("a list").clone()
}

async fn events(admin: &Actor, query: &str) -> Vec<Value> {
    admin.get(&format!("/admin/events{query}")).await.is(200).json()["events"].as_array().expect("a list").clone()
}

fn emails(users: &[Value]) -> Vec<String> {
    users.iter().map(|user| text(&user["email"])).collect()
}

/// Two admins and a user: `root`, `deputy`, `ana`.
async fn two_admins() -> (Stage, Actor, Actor, Actor) {
    let stage = Stage::new().await;
    let (root, deputy, ana) = (stage.admin("root").await, stage.admin("deputy").await, stage.sign_up("ana").await);
    (stage, root, deputy, ana)
}

// Who may.

#[tokio::test]
async fn strangers_and_plain_users_get_nothing_here() {
    let stage = Stage::new().await;
    let (anon, ana) = (stage.anon(), stage.sign_up("ana").await);
    for (name, path, _) in CONTRACT.into_iter().filter(|(_, _, needs)| *needs == Needs::Admin) {
        bare(&anon, name, &filled(path)).await.is_refused(401, "unauthenticated");
        bare(&ana, name, &filled(path)).await.is_refused(403, "forbidden");
    }
}

#[tokio::test]
async fn another_role_than_admin_is_no_admin() {
    let stage = Stage::with(&[("ROLES", "user,auditor,admin")]).await;
    let (root, ana) = (stage.admin("root").await, stage.sign_up("ana").await);
    set_role(&root, &user_id(&ana).await, "auditor").await.is(200);
    ana.log_in("ana").await.is(200);
    ana.get("/admin/users").await.is_refused(403, "forbidden");
}

/// ADM-02, MASS-02: nothing that is sent at sign-up or to one's own account makes an admin.
#[tokio::test]
async fn nobody_makes_themself_an_admin() {
    let stage = Stage::new().await;
    let anon = stage.anon();
    for extra in ["role", "roles", "is_admin", "disabled", "email_verified", "id"] {
        let body = json!({"email": email_of("eve"), "password": password_of("eve"), extra: "admin"});
        let answer = anon.post("/signup", body).await.is_refused(422, "validation_failed");
        assert_eq!(answer.faults(), [format!("{extra}:unknown")]);
    }
    assert_eq!(stage.count("SELECT count(*) FROM users"), 0);

    let ana = stage.sign_up("ana").await;
    for extra in ["role", "Role", "email", "email_verified", "disabled", "password", "sessions"] {
        let answer = ana.patch("/me", json!({"name": "Ana", extra: "admin"})).await.is_refused(422, "validation_failed");
        assert_eq!(answer.faults(), [format!("{extra}:unknown")]);
    }
    ana.post("/login", json!({"email": email_of("ana"), "password": password_of("ana"), "role": "admin"})).await.is_refused(422, "validation_failed");
    let own = user_id(&ana).await;
    set_role(&ana, &own, "admin").await.is_refused(403, "forbidden");
    let me = ana.get("/me").await.is(200).json()["user"].clone();
    assert_eq!((&me["role"], &me["name"]), (&json!("user"), &json!("")));
}

/// ADM-02: an admin changes the role, and nothing beside it.
#[tokio::test]
async fn a_change_of_role_takes_no_other_field() {
    let (_stage, root, _, ana) = two_admins().await;
    let id = user_id(&ana).await;
    let path = format!("/admin/users/{id}/role");
    for extra in ["email", "email_verified", "disabled", "password", "name", "id"] {
        let answer = root.put(&path, json!({"role": "admin", extra: "x"})).await.is_refused(422, "validation_failed");
        assert_eq!(answer.faults(), [format!("{extra}:unknown")]);
    }
    for role in [json!("Admin"), json!(" admin"), json!("administrators"), json!(""), json!(["admin"]), json!(null), json!(1)] {
        let answer = root.put(&path, json!({"role": role})).await.is_refused(422, "validation_failed");
        assert!(answer.faults()[0].starts_with("role:"), "{role}");
    }
    root.put(&path, json!({})).await.is_refused(422, "validation_failed");
    ana.get("/me").await.is(200);
}

// Users.

#[tokio::test]
async fn users_are_listed_newest_first_with_the_fields_of_the_contract() {
    let (_stage, root, _, ana) = two_admins().await;
    let all = users(&root, "").await;
    assert_eq!(emails(&all), [email_of("ana"), email_of("deputy"), email_of("root")]);
    let id = user_id(&ana).await;
    assert_eq!(
        all[0],
        json!({"id": id, "email": "ana@example.com", "email_verified": false, "name": "", "role": "user",
            "created_at": "2026-11-23T06:36:08.123Z", "disabled": false})
    );
    assert_eq!(root.get(&format!("/admin/users/{id}")).await.is(200).json(), json!({"user": all[0]}));
}

#[tokio::test]
async fn users_are_read_page_by_page_without_gap_or_repetition() {
    let stage = Stage::new().await;
    let root = stage.admin("root").await;
    for n in 0..6 {
        stage.sign_up(&format!("user{n}")).await;
    }
    let all = emails(&users(&root, "").await);
    assert_eq!(all.len(), 7);
    for limit in [1, 3, 7, 8] {
        let (mut read, mut query) = (Vec::new(), format!("?limit={limit}"));
        loop {
            let page = root.get(&format!("/admin/users{query}")).await.is(200).json();
            read.extend(emails(page["users"].as_array().expect("a list")));
            match page["next"].as_str() {
                Some(next) => query = format!("?limit={limit}&before={next}"),
                None => break,
            }
        }
        assert_eq!(read, all, "{limit}");
    }
}

#[tokio::test]
async fn a_user_is_found_by_exactly_their_address_after_normalisation() {
    let stage = Stage::new().await;
    let root = stage.admin("root").await;
    stage.sign_up("ana").await;
    let jose = json!({"email": "Jos\u{e9}@B\u{fc}cher.example", "password": password_of("jose")});
    stage.anon().post("/signup", jose).await.is(201);
    for spelling in ["ana@example.com", "ANA@Example.COM"] {
        assert_eq!(emails(&users(&root, &format!("?email={spelling}")).await), [email_of("ana")]);
    }
    for spelling in ["JOSE%CC%81@xn--bcher-kva.example", "jos%C3%A9@B%C3%9CCHER.example"] {
        assert_eq!(emails(&users(&root, &format!("?email={spelling}")).await), ["Jos\u{e9}@xn--bcher-kva.example"]);
    }
    for other in ["na@example.com", "an_@example.com", "ana@example.co", "jose@xn--bcher-kva.example", "nobody@example.com"] {
        let page = root.get(&format!("/admin/users?email={other}")).await.is(200).json();
        assert_eq!(page, json!({"users": [], "next": null}), "{other}");
    }
}

/// PAGE-01, PAGE-02.
#[tokio::test]
async fn odd_queries_for_users_and_events_are_refused() {
    let stage = Stage::new().await;
    let root = stage.admin("root").await;
    for path in ["/admin/users", "/admin/events"] {
        for query in ["limit=0", "limit=101", "limit=-1", "limit=a", "before=1", "before=%27", "before=", "sort=password_hash", "q=%25", "role=admin"] {
            let answer = root.get(&format!("{path}?{query}")).await.is_refused(422, "validation_failed");
            assert!(answer.faults()[0].starts_with(query.split('=').next().expect("a name")), "{query}");
        }
        root.get(&format!("{path}?limit=0&before=x")).await.is_refused(422, "validation_failed");
    }
    for query in ["email=%25", "email=ana", "email=", "email=ana@example.com%00"] {
        root.get(&format!("/admin/users?{query}")).await.is_refused(422, "validation_failed");
    }
    for query in ["kind=nonsense", "kind=", "user_id=1", "user_id="] {
        root.get(&format!("/admin/events?{query}")).await.is_refused(422, "validation_failed");
    }
}

#[tokio::test]
async fn an_unknown_user_is_not_found() {
    let stage = Stage::new().await;
    let root = stage.admin("root").await;
    for (name, path, _) in CONTRACT.into_iter().filter(|(_, path, needs)| *needs == Needs::Admin && path.contains("{id}")) {
        let answer = match name {
            "PUT" => root.put(&filled(path), json!({"role": "user"})).await,
            _ => bare(&root, name, &filled(path)).await,
        };
        answer.is_refused(404, "not_found");
    }
}

// Roles.

#[tokio::test]
async fn a_change_of_role_ends_every_session_of_the_user() {
    let (stage, root, deputy, ana) = two_admins().await;
    let phone = stage.sign_in("ana").await;
    phone.get("/check").await.is(204);
    let id = user_id(&ana).await;
    let answer = set_role(&root, &id, "admin").await.is(200).json();
    assert_eq!((&answer["signed_out"], &answer["user"]["role"], &answer["user"]["id"]), (&json!(2), &json!("admin"), &json!(id)));
    assert_eq!(answer["user"]["disabled"], false);
    ana.get("/me").await.is_refused(401, "session_revoked");
    phone.get("/check").await.is_refused(401, "session_revoked");
    root.get("/me").await.is(200);
    deputy.get("/me").await.is(200);
    ana.log_in("ana").await.is(200);
    assert_eq!(ana.get("/check").await.is(204).header("x-holdfast-role"), Some("admin"));
    ana.get("/admin/users").await.is(200);
}

#[tokio::test]
async fn an_admin_who_changes_their_own_role_is_signed_out_everywhere_too() {
    let (stage, root, _deputy, _) = two_admins().await;
    let before = root.copy();
    let phone = stage.sign_in("root").await;
    let own = user_id(&root).await;
    // The one that signed up, the one that asks, the phone.
    assert_eq!(set_role(&root, &own, "user").await.is(200).json()["signed_out"], 3);
    before.get("/me").await.is_refused(401, "session_revoked");
    phone.get("/me").await.is_refused(401, "session_revoked");
    let again = stage.sign_in("root").await;
    again.get("/admin/users").await.is_refused(403, "forbidden");
}

#[tokio::test]
async fn a_demoted_admin_is_no_admin_with_the_next_request() {
    let (stage, root, deputy, ana) = two_admins().await;
    for _ in 0..20 {
        deputy.get("/admin/users").await.is(200);
    }
    set_role(&root, &user_id(&deputy).await, "user").await.is(200);
    set_role(&deputy, &user_id(&ana).await, "admin").await.is_refused(401, "session_revoked");
    stage.sign_in("deputy").await.get("/admin/events").await.is_refused(403, "forbidden");
    assert_eq!(ana.get("/me").await.is(200).json()["user"]["role"], "user");
}

#[tokio::test]
async fn the_same_role_again_changes_nothing() {
    let (stage, root, _, ana) = two_admins().await;
    let (id, own) = (user_id(&ana).await, user_id(&root).await);
    let before = stage.count("SELECT count(*) FROM events");
    assert_eq!(set_role(&root, &id, "user").await.is(200).json()["signed_out"], 0);
    assert_eq!(set_role(&root, &own, "admin").await.is(200).json()["signed_out"], 0);
    ana.get("/me").await.is(200);
    root.get("/me").await.is(200);
    assert_eq!(stage.count("SELECT count(*) FROM events"), before);
}

// The last admin.

#[tokio::test]
async fn the_last_admin_can_be_neither_demoted_nor_disabled_not_even_by_themself() {
    let stage = Stage::new().await;
    let root = stage.admin("root").await;
    stage.sign_up("ana").await;
    let own = user_id(&root).await;
    set_role(&root, &own, "user").await.is_refused(409, "last_admin");
    disable(&root, &own).await.is_refused(409, "last_admin");
    assert_eq!(root.get("/me").await.is(200).json()["user"]["role"], "admin");
    assert_eq!(events(&root, "?kind=role_changed").await.len() + events(&root, "?kind=account_disabled").await.len(), 0);
}

#[tokio::test]
async fn a_disabled_admin_does_not_count_as_another() {
    let (_stage, root, deputy, _) = two_admins().await;
    let (own, other) = (user_id(&root).await, user_id(&deputy).await);
    disable(&root, &other).await.is(200);
    set_role(&root, &own, "user").await.is_refused(409, "last_admin");
    disable(&root, &own).await.is_refused(409, "last_admin");
    // To demote the disabled one leaves as many as before.
    set_role(&root, &other, "user").await.is(200);
    root.get("/me").await.is(200);
}

#[tokio::test]
async fn with_two_admins_one_may_step_down_and_the_other_may_not() {
    let (_stage, root, deputy, _) = two_admins().await;
    let (own, other) = (user_id(&root).await, user_id(&deputy).await);
    disable(&root, &own).await.is(200);
    set_role(&deputy, &other, "user").await.is_refused(409, "last_admin");
    enable(&deputy, &own).await.is(200);
    set_role(&deputy, &other, "user").await.is(200);
}

// Disabling.

/// REV-05.
#[tokio::test]
async fn disabling_ends_every_session_at_once_and_lets_nobody_in() {
    let (stage, root, _, ana) = two_admins().await;
    let phone = stage.sign_in("ana").await;
    for _ in 0..20 {
        phone.get("/check").await.is(204);
    }
    let id = user_id(&ana).await;
    let answer = disable(&root, &id).await.is(200).json();
    assert_eq!((&answer["signed_out"], &answer["user"]["disabled"]), (&json!(2), &json!(true)));
    phone.get("/check").await.is_refused(401, "session_revoked");
    ana.get("/me").await.is_refused(401, "session_revoked");
    ana.log_in("ana").await.is_refused(401, "invalid_credentials");
    assert_eq!(root.get(&format!("/admin/users/{id}")).await.is(200).json()["user"]["disabled"], true);
}

/// ENUM-01.
#[tokio::test]
async fn a_disabled_account_a_wrong_password_and_an_unknown_address_are_told_apart_by_nothing() {
    let (stage, root, _, ana) = two_admins().await;
    stage.sign_up("ben").await;
    disable(&root, &user_id(&ana).await).await.is(200);
    let mut answers = Vec::new();
    for (name, password) in [("ana", password_of("ana")), ("ana", "wrong".into()), ("ben", "wrong".into()), ("nobody", password_of("nobody"))] {
        let mut answer = stage.anon().post("/login", json!({"email": email_of(name), "password": password})).await.is_refused(401, "invalid_credentials");
        answer.headers.remove("x-request-id");
        answers.push((answer.status, answer.headers, answer.body));
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
}

/// REV-05.
#[tokio::test]
async fn enabling_revives_no_session() {
    let (mut stage, root, _, ana) = two_admins().await;
    let id = user_id(&ana).await;
    disable(&root, &id).await.is(200);
    let answer = enable(&root, &id).await.is(200).json();
    assert_eq!((&answer["signed_out"], &answer["user"]["disabled"]), (&json!(0), &json!(false)));
    ana.get("/me").await.is_refused(401, "session_revoked");
    stage.crash().await;
    let again = stage.anon();
    again.set_token(ana.token().as_deref());
    again.get("/me").await.is_refused(401, "session_revoked");
    stage.sign_in("ana").await.get("/me").await.is(200);
}

#[tokio::test]
async fn a_disabled_account_stays_disabled_after_a_crash() {
    let (mut stage, root, _, ana) = two_admins().await;
    disable(&root, &user_id(&ana).await).await.is(200);
    stage.crash().await;
    stage.anon().log_in("ana").await.is_refused(401, "invalid_credentials");
}

#[tokio::test]
async fn disabling_and_enabling_a_second_time_changes_nothing() {
    let (_stage, root, _, ana) = two_admins().await;
    let id = user_id(&ana).await;
    enable(&root, &id).await.is(200);
    assert_eq!(events(&root, "?kind=account_enabled").await.len(), 0);
    ana.get("/me").await.is(200);
    disable(&root, &id).await.is(200);
    assert_eq!(disable(&root, &id).await.is(200).json()["signed_out"], 0);
    assert_eq!(events(&root, "?kind=account_disabled").await.len(), 1);
}

#[tokio::test]
async fn an_admin_who_disables_themself_is_out_with_the_next_request() {
    let (_stage, root, _, _) = two_admins().await;
    let before = root.copy();
    disable(&root, &user_id(&root).await).await.is(200);
    before.get("/admin/users").await.is_refused(401, "session_revoked");
    root.log_in("root").await.is_refused(401, "invalid_credentials");
}

// Sessions of others.

#[tokio::test]
async fn an_admin_sees_the_live_sessions_of_a_user() {
    let (stage, root, _, ana) = two_admins().await;
    let gone = stage.sign_in("ana").await;
    gone.poke("/logout").await.is(204);
    stage.clock.advance(SECOND);
    let phone = stage.sign_in("ana").await;
    let expected = [session_id(&phone).await, session_id(&ana).await];
    let list = root.get(&format!("/admin/users/{}/sessions", user_id(&ana).await)).await.is(200).json();
    let told: BTreeSet<String> = list["sessions"].as_array().expect("a list").iter().map(|session| text(&session["id"])).collect();
    assert_eq!(told, BTreeSet::from(expected));
    assert!(list["sessions"].as_array().expect("a list").iter().all(|session| session["current"] == false));
    let own = root.get(&format!("/admin/users/{}/sessions", user_id(&root).await)).await.is(200).json();
    assert_eq!((&own["sessions"][0]["current"], &own["sessions"][0]["id"]), (&json!(true), &json!(session_id(&root).await)));
}

#[tokio::test]
async fn an_admin_does_not_see_sessions_that_timed_out() {
    let (stage, _, _, ana) = two_admins().await;
    let id = user_id(&ana).await;
    stage.clock.advance(IDLE_TIMEOUT + TICK);
    let root = stage.sign_in("root").await;
    assert_eq!(root.get(&format!("/admin/users/{id}/sessions")).await.is(200).json(), json!({"sessions": []}));
    assert_eq!(root.delete(&format!("/admin/users/{id}/sessions")).await.is(200).json(), json!({"signed_out": 0}));
    ana.get("/me").await.is_refused(401, "session_idle_timeout");
}

#[tokio::test]
async fn an_admin_ends_all_sessions_of_a_user() {
    let (stage, root, deputy, ana) = two_admins().await;
    let phone = stage.sign_in("ana").await;
    phone.get("/check").await.is(204);
    let answer = root.delete(&format!("/admin/users/{}/sessions", user_id(&ana).await)).await.is(200);
    assert_eq!(answer.json(), json!({"signed_out": 2}));
    assert!(answer.set_cookies().is_empty());
    ana.get("/me").await.is_refused(401, "session_revoked");
    phone.get("/check").await.is_refused(401, "session_revoked");
    deputy.get("/me").await.is(200);
    root.get("/me").await.is(200);
    // The account is open all the same.
    ana.log_in("ana").await.is(200);
}

#[tokio::test]
async fn an_admin_ends_one_session_of_a_user() {
    let (stage, root, _, ana) = two_admins().await;
    let phone = stage.sign_in("ana").await;
    let path = format!("/admin/users/{}/sessions/{}", user_id(&ana).await, session_id(&phone).await);
    root.delete(&path).await.is(204);
    phone.get("/me").await.is_refused(401, "session_revoked");
    ana.get("/me").await.is(200);
    root.delete(&path).await.is_refused(404, "not_found");
}

#[tokio::test]
async fn a_session_is_found_only_under_its_own_user() {
    let (stage, root, _, ana) = two_admins().await;
    let ben = stage.sign_up("ben").await;
    root.delete(&format!("/admin/users/{}/sessions/{}", user_id(&ben).await, session_id(&ana).await)).await.is_refused(404, "not_found");
    root.delete(&format!("/admin/users/{}/sessions/{NOBODYS_ID}", user_id(&ben).await)).await.is_refused(404, "not_found");
    ana.get("/me").await.is(200);
    ben.get("/me").await.is(200);
}

#[tokio::test]
async fn an_admin_may_end_all_of_their_own_sessions() {
    let (_stage, root, _, _) = two_admins().await;
    let before = root.copy();
    let answer = root.delete(&format!("/admin/users/{}/sessions", user_id(&root).await)).await.is(200);
    assert_eq!(answer.json(), json!({"signed_out": 2}));
    before.get("/me").await.is_refused(401, "session_revoked");
}

// The audit log.

#[tokio::test]
async fn each_deed_of_an_admin_is_written_down_with_who_did_it_to_whom() {
    let (_stage, root, _, ana) = two_admins().await;
    let root = root.from_ip("203.0.113.99");
    let (admin, user) = (user_id(&root).await, user_id(&ana).await);
    let first = session_id(&ana).await;
    root.delete(&format!("/admin/users/{user}/sessions/{first}")).await.is(204);
    ana.log_in("ana").await.is(200);
    root.delete(&format!("/admin/users/{user}/sessions")).await.is(200);
    set_role(&root, &user, "admin").await.is(200);
    disable(&root, &user).await.is(200);
    enable(&root, &user).await.is(200);
    for kind in ["session_revoked", "sessions_revoked", "role_changed", "account_disabled", "account_enabled"] {
        let told = events(&root, &format!("?kind={kind}&user_id={user}")).await;
        assert_eq!(told.len(), 1, "{kind}: {told:?}");
        assert_eq!((text(&told[0]["actor_id"]), text(&told[0]["user_id"])), (admin.clone(), user.clone()), "{kind}");
    }
    let role = &events(&root, "?kind=role_changed").await[0]["detail"];
    assert_eq!((&role["from"], &role["to"]), (&json!("user"), &json!("admin")));
    for kind in ["role_changed", "account_disabled", "account_enabled"] {
        assert_eq!(events(&root, &format!("?kind={kind}")).await[0]["ip"], "203.0.113.99", "{kind}");
    }
}

#[tokio::test]
async fn a_refused_deed_is_not_written_down() {
    let stage = Stage::new().await;
    let (root, ana) = (stage.admin("root").await, stage.sign_up("ana").await);
    let before = stage.count("SELECT count(*) FROM events");
    let own = user_id(&root).await;
    set_role(&root, &own, "user").await.is(409);
    set_role(&root, NOBODYS_ID, "user").await.is(404);
    set_role(&root, &user_id(&ana).await, "boss").await.is(422);
    root.delete(&format!("/admin/users/{own}/sessions/{NOBODYS_ID}")).await.is(404);
    disable(&ana, &own).await.is(403);
    assert_eq!(stage.count("SELECT count(*) FROM events"), before);
}

#[tokio::test]
async fn the_audit_log_is_filtered_by_kind_and_by_user_and_by_both() {
    let (stage, root, _, ana) = two_admins().await;
    let ben = stage.sign_up("ben").await;
    stage.sign_in("ben").await;
    let (ana, ben) = (user_id(&ana).await, user_id(&ben).await);
    let all = events(&root, "?limit=100").await;
    let matching = |kind: Option<&str>, user: Option<&str>| -> Vec<String> {
        let fits = |event: &&Value| kind.is_none_or(|kind| event["kind"] == kind) && user.is_none_or(|user| event["user_id"] == user);
        all.iter().filter(fits).map(|event| text(&event["id"])).collect()
    };
    let read = async |query: String| -> Vec<String> { events(&root, &query).await.iter().map(|event| text(&event["id"])).collect() };
    assert_eq!(read("?kind=signed_in".into()).await, matching(Some("signed_in"), None));
    assert_eq!(read(format!("?user_id={ben}")).await, matching(None, Some(&ben)));
    assert_eq!(read(format!("?kind=signed_in&user_id={ben}")).await, matching(Some("signed_in"), Some(&ben)));
    assert_eq!(matching(Some("signed_in"), Some(&ben)).len(), 2);
    assert_eq!(read(format!("?kind=signed_out&user_id={ana}")).await, Vec::<String>::new());
    assert_eq!(read(format!("?user_id={NOBODYS_ID}")).await, Vec::<String>::new());
}

#[tokio::test]
async fn the_audit_log_is_read_page_by_page_with_every_filter() {
    let (stage, root, _, ana) = two_admins().await;
    for _ in 0..4 {
        stage.sign_in("ana").await;
    }
    let ana = user_id(&ana).await;
    for filter in [String::new(), "&kind=signed_in".into(), format!("&user_id={ana}"), format!("&kind=signed_in&user_id={ana}")] {
        let all = root.get(&format!("/admin/events?limit=100{filter}")).await.is(200).json();
        assert_eq!(all["next"], Value::Null);
        let all: Vec<String> = all["events"].as_array().expect("a list").iter().map(|event| text(&event["id"])).collect();
        assert!(all.len() >= 5 && all.is_sorted_by(|a, b| a > b), "{filter}");
        let (mut read, mut before) = (Vec::new(), String::new());
        loop {
            let page = root.get(&format!("/admin/events?limit=2{filter}{before}")).await.is(200).json();
            read.extend(page["events"].as_array().expect("a list").iter().map(|event| text(&event["id"])));
            match page["next"].as_str() {
                Some(next) => before = format!("&before={next}"),
                None => break,
            }
        }
        assert_eq!(read, all, "{filter}");
    }
}

#[tokio::test]
async fn a_failed_sign_in_names_an_account_only_if_there_is_one() {
    let stage = Stage::new().await;
    let (root, ana) = (stage.admin("root").await, stage.sign_up("ana").await);
    for name in ["ana", "nobody"] {
        stage.anon().post("/login", json!({"email": email_of(name), "password": "hunter2hunter2"})).await.is(401);
    }
    let failed = events(&root, "?kind=sign_in_failed").await;
    assert_eq!(failed.len(), 2);
    assert_eq!(failed[0]["user_id"], Value::Null);
    assert_eq!(text(&failed[1]["user_id"]), user_id(&ana).await);
    assert!(!json!(failed).to_string().contains("nobody@") && !json!(failed).to_string().contains("hunter2"));
}

/// IDOR-03: where an administrator sat is none of the user's business.
#[tokio::test]
async fn the_users_own_activity_does_not_show_the_admins_address_or_id() {
    let (_stage, root, _, ana) = two_admins().await;
    let (admin, user) = (user_id(&root).await, user_id(&ana).await);
    let root = root.from_ip("203.0.113.99");
    root.delete(&format!("/admin/users/{user}/sessions")).await.is(200);
    set_role(&root, &user, "admin").await.is(200);
    disable(&root, &user).await.is(200);
    enable(&root, &user).await.is(200);
    set_role(&root, &user, "user").await.is(200);
    ana.log_in("ana").await.is(200);
    let activity = ana.get("/me/activity?limit=100").await.is(200).json();
    let kinds: BTreeSet<&str> = activity["events"].as_array().expect("a list").iter().filter_map(|event| event["kind"].as_str()).collect();
    assert!(["sessions_revoked", "role_changed", "account_disabled", "account_enabled"].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    let whole = activity.to_string();
    assert!(!whole.contains("203.0.113.99") && !whole.contains(&admin), "{whole}");
}

#[tokio::test]
async fn the_user_is_told_of_what_an_admin_changed() {
    let (stage, root, _, ana) = two_admins().await;
    let user = user_id(&ana).await;
    set_role(&root, &user, "admin").await.is(200);
    disable(&root, &user).await.is(200);
    enable(&root, &user).await.is(200);
    for kind in ["role_changed", "account_disabled", "account_enabled"] {
        assert_eq!(stage.count(&format!("SELECT count(*) FROM outbox WHERE kind = '{kind}'")), 1, "{kind}");
    }
}
