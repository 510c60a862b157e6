//! Another address, and the way back. An attacker with a stolen session and the password tries to move the account away, and to
//! keep the owner from undoing it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::stage::{Actor, Answer, Stage, email_of, link_of, password_of, token_of};

const OLD: &str = "ana@example.com";
const NEXT: &str = "ana@example.org";
const THIEF: &str = "thief@evil.test";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn change(to: &str) -> Value {
    json!({"email": to, "current_password": password_of("ana")})
}

async fn ask(stage: &Stage, ana: &Actor, to: &str) -> String {
    ana.put("/me/email", change(to)).await.is(202);
    token_of(&stage.letter(to, "Confirm your new").await)
}

async fn confirm(actor: &Actor, token: &str) -> Answer {
    actor.post("/email/change", json!({"token": token})).await
}

async fn address(actor: &Actor) -> String {
    actor.get("/me").await.is(200).json()["user"]["email"].as_str().expect("an address").to_string()
}

#[tokio::test]
async fn nothing_changes_until_the_new_address_confirms() {
    let stage = Stage::new().await;
    let (ana, phone) = (stage.sign_up("ana").await, stage.sign_in("ana").await);
    let token = ask(&stage, &ana, NEXT).await;
    assert_eq!(address(&ana).await, OLD);
    let notice = stage.letter(OLD, "A new e-mail").await;
    assert!(notice.text.contains(NEXT) && !notice.text.contains("http"), "{}", notice.text);

    let (before, copy) = (ana.token(), ana.copy());
    let answer = confirm(&ana, &token).await.is(200).json();
    assert_eq!((&answer["user"]["email"], &answer["user"]["email_verified"], &answer["signed_out"]), (&json!(NEXT), &json!(true), &json!(1)));
    assert_ne!(ana.token(), before);
    assert_eq!(address(&ana).await, NEXT);
    assert_eq!(ana.get("/check").await.is(204).header("x-holdfast-email"), Some("ana@example.org"));
    copy.get("/me").await.is_refused(401, "session_rotated");
    phone.get("/me").await.is_refused(401, "session_revoked");
    confirm(&ana, &token).await.is_refused(400, "invalid_token");
    stage.sign_up("ana").await;
    stage.anon().post("/login", json!({"email": NEXT, "password": password_of("ana")})).await.is(200);
}

/// VER-01: nobody has the own address verified by the link that takes the mailbox alone.
#[tokio::test]
async fn a_change_to_the_own_unproved_address_asks_for_its_proof_as_usual() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let first = token_of(&stage.letter(OLD, "Confirm your e-mail").await);
    ana.put("/me/email", change("ANA@example.com")).await.is(202);
    let letters = stage.letters_to(OLD, "Confirm your").await;
    let token = token_of(letters.last().expect("one more"));
    assert_ne!(token, first);
    confirm(&stage.anon(), &token).await.is_refused(400, "invalid_token");
    stage.anon().post("/email/verify", json!({"token": token})).await.is_refused(403, "invalid_credentials");
    ana.post("/email/verify", json!({"token": token})).await.is(200);
}

#[tokio::test]
async fn a_letter_that_is_opened_elsewhere_ends_every_session() {
    let stage = Stage::new().await;
    let (ana, ben) = (stage.sign_up("ana").await, stage.sign_up("ben").await);
    let token = ask(&stage, &ana, NEXT).await;
    let answer = confirm(&ben, &token).await.is(200);
    assert!(answer.set_cookies().is_empty());
    ana.get("/me").await.is_refused(401, "session_revoked");
    assert_eq!(address(&ben).await, email_of("ben"));
}

#[tokio::test]
async fn it_takes_the_current_password() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.letters().await;
    ana.put("/me/email", json!({"email": NEXT, "current_password": "wrong password"})).await.is_refused(403, "invalid_credentials");
    assert_eq!(stage.letters().await.len(), 1);
}

/// An address that has an account: the asker learns nothing, its owner gets a letter.
#[tokio::test]
async fn a_taken_address_is_told_to_its_owner_only() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    stage.sign_up("ben").await;
    let free = ana.put("/me/email", change(NEXT)).await.is(202);
    let taken = ana.put("/me/email", change("BEN@example.com")).await.is(202);
    assert_eq!(free.body, taken.body);
    assert_eq!(stage.letters_to("ben@example.com", "You already").await.len(), 1);
    assert!(stage.letters().await.iter().all(|letter| !(letter.subject.starts_with("Confirm your new") && letter.to != NEXT)));
    assert_eq!(stage.count("SELECT count(*) FROM letter_tokens WHERE purpose = 'change_email'"), 0);
}

#[tokio::test]
async fn an_address_that_got_an_account_meanwhile_is_not_taken_from_it() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage, &ana, "ben@example.com").await;
    stage.sign_up("ben").await;
    confirm(&ana, &token).await.is_refused(409, "email_taken");
    assert_eq!(address(&ana).await, OLD);
}

/// EML-02: whatever throws the thief out ends the change that they began, also while its letter still waits.
#[tokio::test]
async fn a_pending_change_does_not_outlive_what_evicts_a_thief() {
    for deed in ["reset", "password", "revoke one", "revoke others", "by an administrator", "disown"] {
        let stage = Stage::new().await;
        let (admin, ana) = (stage.admin("root").await, stage.sign_up("ana").await);
        let thief = stage.anon().from_ip("203.0.113.7");
        thief.log_in("ana").await.is(200);
        let seen = thief.get("/me").await.is(200).json();
        let [user, session] = ["user", "session"].map(|what| seen[what]["id"].as_str().expect("an id").to_string());
        let token = ask(&stage, &thief, THIEF).await;
        thief.put("/me/email", change("thief2@evil.test")).await.is(202);
        match deed {
            "reset" => {
                ana.post("/password/forgot", json!({"email": OLD})).await.is(202);
                let reset = json!({"token": token_of(&stage.letter(OLD, "Choose").await), "new_password": "quite another password"});
                ana.post("/password/reset", reset).await.is(204);
            }
            "password" => drop(ana.change_password(&password_of("ana"), "quite another password").await.is(200)),
            "revoke one" => drop(ana.delete(&format!("/me/sessions/{session}")).await.is(204)),
            "by an administrator" => drop(admin.delete(&format!("/admin/users/{user}/sessions/{session}")).await.is(204)),
            "revoke others" => drop(ana.delete("/me/sessions").await.is(200)),
            _ => drop(ana.submit(&link_of(&stage.letter(OLD, "New sign-in").await), &[]).await.is(200)),
        }
        confirm(&thief, &token).await.is_refused(400, "invalid_token");
        for letter in stage.letters_to("thief2@evil.test", "Confirm").await {
            confirm(&thief, &token_of(&letter)).await.is_refused(400, "invalid_token");
        }
        assert_eq!(stage.count("SELECT count(*) FROM users WHERE email = 'ana@example.com'"), 1, "{deed}");
    }
}

/// EML-03: each link confirms its own recipient, and at most one is good.
#[tokio::test]
async fn of_simultaneous_requests_one_is_pending_and_each_link_confirms_its_own_recipient() {
    for _ in 0..10 {
        let stage = Stage::new().await;
        let ana = stage.sign_up("ana").await;
        let mut runs = JoinSet::new();
        for to in ["mine@evil.test", "victim@example.com"] {
            let ana = ana.clone();
            runs.spawn(async move { ana.put("/me/email", change(to)).await.is(202) });
        }
        runs.join_all().await;
        let letters: Vec<_> = stage.letters().await.into_iter().filter(|letter| letter.subject.starts_with("Confirm your new")).collect();
        assert!(letters.len() <= 1 && stage.count("SELECT count(*) FROM letter_tokens WHERE purpose = 'change_email'") <= 1);
        for letter in letters {
            let user = confirm(&ana, &token_of(&letter)).await.is(200).json();
            assert_eq!(user["user"]["email"], letter.to.as_str());
        }
    }
}

/// RACE-01.
#[tokio::test]
async fn of_parallel_confirmations_exactly_one_wins() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage, &ana, NEXT).await;
    let mut runs = JoinSet::new();
    for _ in 0..20 {
        let (anon, token) = (stage.anon(), token.clone());
        runs.spawn(async move { confirm(&anon, &token).await.status.as_u16() });
    }
    let answers = runs.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    assert_eq!(stage.letters_to(OLD, "Your account at localhost has").await.len(), 1);
}

#[tokio::test]
async fn the_way_back_restores_the_address_ends_every_session_and_voids_the_password() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage, &ana, THIEF).await;
    confirm(&ana, &token).await.is(200);
    let way_back = token_of(&stage.letter(OLD, "Your account at localhost has").await);
    // A thief changes the password, and the link is good all the same.
    ana.change_password(&password_of("ana"), "the thief's password").await.is(200);
    stage.clock.advance(Duration::from_secs(20 * 60));
    let owner = stage.anon();
    owner.post("/email/undo", json!({"token": way_back})).await.is(204);
    ana.get("/me").await.is_refused(401, "session_revoked");
    for (email, password) in [(OLD, "the thief's password"), (OLD, password_of("ana").as_str()), (THIEF, "the thief's password")] {
        owner.post("/login", json!({"email": email, "password": password})).await.is_refused(401, "invalid_credentials");
    }
    owner.post("/email/undo", json!({"token": way_back})).await.is_refused(400, "invalid_token");
    owner.post("/password/forgot", json!({"email": OLD})).await.is(202);
    let reset = token_of(&stage.letter(OLD, "Choose").await);
    owner.post("/password/reset", json!({"token": reset, "new_password": "quite another password"})).await.is(204);
    owner.post("/login", json!({"email": OLD, "password": "quite another password"})).await.is(200);
}

/// Letters about sign-ins went to the thief's address while the account had it. Their links turn nobody out once it is back.
#[tokio::test]
async fn what_went_to_the_address_of_a_thief_turns_no_owner_out() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage, &ana, THIEF).await;
    confirm(&ana, &token).await.is(200);
    let log_in = json!({"email": THIEF, "password": password_of("ana")});
    stage.anon().from_ip("203.0.113.7").post("/login", log_in.clone()).await.is(200);
    let delivered = link_of(&stage.letter(THIEF, "New sign-in").await);
    stage.anon().from_ip("203.0.113.8").post("/login", log_in).await.is(200);

    let owner = stage.anon();
    owner.post("/email/undo", json!({"token": token_of(&way_back(&stage))})).await.is(204);
    owner.post("/password/forgot", json!({"email": OLD})).await.is(202);
    let reset = token_of(&stage.letter(OLD, "Choose").await);
    owner.post("/password/reset", json!({"token": reset, "new_password": "quite another password"})).await.is(204);
    owner.post("/login", json!({"email": OLD, "password": "quite another password"})).await.is(200);
    owner.submit(&delivered, &[]).await.is(400);
    assert_eq!(stage.letters_to(THIEF, "New sign-in").await.len(), 1, "the letter that waited was withdrawn");
    owner.get("/me").await.is(200);
}

/// The letter with the way back, without delivering anything else that waits.
fn way_back(stage: &Stage) -> holdfast::mail::Letter {
    let mut all = stage.mailbag.letters().into_iter();
    all.rfind(|letter| letter.to == OLD && letter.subject.starts_with("Your account at localhost has")).expect("the way back")
}

#[tokio::test]
async fn the_way_back_is_good_for_seven_days() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage, &ana, NEXT).await;
    confirm(&ana, &token).await.is(200);
    let way_back = token_of(&stage.letter(OLD, "Your account at localhost has").await);
    stage.clock.advance(7 * DAY + crate::stage::TICK);
    ana.post("/email/undo", json!({"token": way_back})).await.is_refused(400, "invalid_token");
}

#[tokio::test]
async fn of_several_ways_back_the_oldest_wins() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage, &ana, "b@evil.test").await;
    confirm(&ana, &token).await.is(200);
    let first = token_of(&stage.letter(OLD, "Your account at localhost has").await);
    let token = ask(&stage, &ana, "c@evil.test").await;
    confirm(&ana, &token).await.is(200);
    let second = token_of(&stage.letter("b@evil.test", "Your account at localhost has").await);
    ana.post("/email/undo", json!({"token": first})).await.is(204);
    ana.post("/email/undo", json!({"token": second})).await.is_refused(400, "invalid_token");
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE email = 'ana@example.com'"), 1);
}

#[tokio::test]
async fn a_later_way_back_does_not_end_the_oldest() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage, &ana, "b@evil.test").await;
    confirm(&ana, &token).await.is(200);
    let first = token_of(&stage.letter(OLD, "Your account at localhost has").await);
    let token = ask(&stage, &ana, "c@evil.test").await;
    confirm(&ana, &token).await.is(200);
    let second = token_of(&stage.letter("b@evil.test", "Your account at localhost has").await);
    ana.post("/email/undo", json!({"token": second})).await.is(204);
    ana.post("/email/undo", json!({"token": first})).await.is(204);
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE email = 'ana@example.com'"), 1);
}

/// A thief opens an account with the old address, to stop the undoing.
#[tokio::test]
async fn an_unverified_account_does_not_stand_in_the_way_back() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let token = ask(&stage, &ana, THIEF).await;
    confirm(&ana, &token).await.is(200);
    let way_back = token_of(&stage.letter(OLD, "Your account at localhost has").await);
    let squatter = stage.sign_up("ana").await;
    stage.anon().post("/email/undo", json!({"token": way_back})).await.is(204);
    squatter.get("/me").await.is_refused(401, "unauthenticated");
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE email = 'ana@example.com'"), 1);
}

/// Nor does one that the owner is made to bring back by a link that looks like the right one.
#[tokio::test]
async fn an_account_that_came_by_a_way_back_does_not_stand_in_the_way_of_an_older_one() {
    let stage = Stage::new().await;
    let ana = stage.sign_up("ana").await;
    let id = ana.get("/me").await.is(200).json()["user"]["id"].as_str().expect("an id").to_string();
    let token = ask(&stage, &ana, THIEF).await;
    confirm(&ana, &token).await.is(200);
    let right = token_of(&stage.letter(OLD, "Your account at localhost has").await);

    let decoy = stage.sign_up("ana").await;
    let token = ask(&stage, &decoy, "another@evil.test").await;
    confirm(&decoy, &token).await.is(200);
    let letters = stage.letters_to(OLD, "Your account at localhost has").await;
    let wrong = token_of(letters.last().expect("the decoy's"));
    stage.anon().post("/email/undo", json!({"token": wrong})).await.is(204);
    assert_eq!(stage.count("SELECT count(*) FROM users WHERE email = 'ana@example.com' AND email_verified = 1"), 1);

    stage.anon().post("/email/undo", json!({"token": right})).await.is(204);
    assert_eq!(stage.count("SELECT count(*) FROM users"), 1);
    let admin = stage.admin("admin").await;
    assert_eq!(admin.get(&format!("/admin/users/{id}")).await.is(200).json()["user"]["email"], OLD);
}

/// Who verified the address by themselves keeps it, and so does an administrator in any case.
#[tokio::test]
async fn a_verified_account_and_an_administrators_are_not_deleted_by_a_way_back() {
    let stage = Stage::new().await;
    for make in ["UPDATE users SET email_verified = 1 WHERE email = 'ana@example.com'", "UPDATE users SET role = 'admin' WHERE email = 'ana@example.com'"] {
        stage.execute("DELETE FROM users");
        let ana = stage.sign_up("ana").await;
        let token = ask(&stage, &ana, THIEF).await;
        confirm(&ana, &token).await.is(200);
        let letters = stage.letters_to(OLD, "Your account at localhost has").await;
        stage.sign_up("ana").await;
        stage.execute(make);
        let way_back = token_of(letters.last().expect("the newest"));
        stage.anon().post("/email/undo", json!({"token": way_back})).await.is_refused(409, "email_taken");
        assert_eq!(stage.count("SELECT count(*) FROM users"), 2);
    }
}

#[tokio::test]
async fn after_the_way_back_the_alarm_rings_for_whoever_moved_the_account() {
    let stage = Stage::new().await;
    let thief = stage.sign_up("ana").await;
    let token = ask(&stage, &thief, THIEF).await;
    confirm(&thief, &token).await.is(200);
    let way_back = token_of(&stage.letter(OLD, "Your account at localhost has").await);
    stage.anon().post("/email/undo", json!({"token": way_back})).await.is(204);
    assert_eq!(stage.count("SELECT (SELECT count(*) FROM known_ips) + (SELECT count(*) FROM known_devices)"), 0);
}
