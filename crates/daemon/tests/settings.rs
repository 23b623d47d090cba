//! How a daemon is set.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::json;
use support::Daemon;

const IDLE: &str = "/settings/idle-timeout";

#[tokio::test]
async fn a_setting_is_what_it_was_set_to_also_for_the_next_daemon_until_it_is_unset() {
    let mut daemon = Daemon::start().await;
    let (status, before) = daemon.get(IDLE).await;
    assert_eq!((status.as_u16(), &before["value"], &before["default"]), (200, &json!("off"), &json!("off")));

    assert_eq!(daemon.put(IDLE, json!({"value": "600s"})).await.1["value"], "10m");
    assert_eq!(daemon.get("/settings").await.1[0]["value"], "10m");
    daemon.stop().await;
    daemon.start_again().await;
    assert_eq!(daemon.get(IDLE).await.1["value"], "10m");

    assert_eq!(daemon.delete(IDLE).await.1, before);
    daemon.stop().await;
    daemon.start_again().await;
    assert_eq!(daemon.get(IDLE).await.1, before);
}

#[tokio::test]
async fn what_is_no_setting_or_cannot_be_its_value_is_refused_and_changes_nothing() {
    let daemon = Daemon::start().await;
    daemon.put(IDLE, json!({"value": "5m"})).await;

    let (status, error) = daemon.put(IDLE, json!({"value": "soon"})).await;
    let sentence = "idle-timeout cannot be \"soon\": it is off, or a duration such as 5m";
    assert_eq!((status.as_u16(), error["error"].as_str().unwrap()), (400, sentence));
    assert_eq!(daemon.put(IDLE, json!({"values": "1m"})).await.0, 400);
    assert_eq!(daemon.get(IDLE).await.1["value"], "5m");

    let color = "/settings/color";
    for answer in [daemon.get(color).await, daemon.put(color, json!({"value": "1"})).await, daemon.delete(color).await]
    {
        let sentence = json!({"error": "no setting is called color: there is idle-timeout, net"});
        assert_eq!((answer.0.as_u16(), answer.1), (404, sentence));
    }
    assert_eq!(daemon.get("/settings").await.1.as_array().unwrap().len(), 2);
}
