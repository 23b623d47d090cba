//! PostgreSQL in a VM, and one that a VM is connected to.

use super::{LIMIT, POSTGRES, at, base, timed};
use pando_tests::world::{WORLD, World};
use pando_tests::{TestDaemon, TestVm, progress, wait_for};
use std::time::Instant;

/// A session of `psql` in a guest that waits for questions.
struct Session<'a, 'd>(&'a TestVm<'d>);

impl<'a, 'd> Session<'a, 'd> {
    /// Connects to the server at `address`.
    fn begin(vm: &'a TestVm<'d>, address: &str) -> Self {
        let psql = format!("psql -h {address} -U postgres -At postgres < /tmp/ask > /tmp/said 2>&1");
        vm.write("/tmp/session", &format!("sleep 100000 > /tmp/ask &\n{psql}\necho $? > /tmp/end\n"));
        vm.sh("mkfifo /tmp/ask");
        vm.start("sh /tmp/session");
        Self(vm)
    }

    /// The same, in a child.
    fn of<'c>(child: &'c TestVm<'d>) -> Session<'c, 'd> {
        Session(child)
    }

    /// Writes a row. The process of the server that did.
    fn insert(&self, row: &str) -> String {
        let before = self.answers().len();
        self.ask(&format!("insert into rows values ('{row}') returning pg_backend_pid();"));
        wait_for("the row is written", LIMIT, || self.answers().len() > before);
        self.answers()[before].clone()
    }

    fn ask(&self, question: &str) {
        self.0.sh(&format!("echo \"{question}\" > /tmp/ask"));
    }

    /// Of each question.
    fn answers(&self) -> Vec<String> {
        let said = self.0.read("/tmp/said");
        let lines: Vec<_> = said.lines().collect();
        let of = |pair: &[&str]| (pair[1] == "INSERT 0 1").then(|| pair[0].to_owned());
        lines.windows(2).filter_map(of).collect()
    }
}

/// What a statement of SQL in a session of its own says, asked of the guest's server.
#[track_caller]
fn sql(vm: &TestVm<'_>, statement: &str) -> String {
    vm.exec(&["psql", "-h", "127.0.0.1", "-U", "postgres", "-Atc", statement, "postgres"]).ok()
}

const ROWS: &str = "select string_agg(who, ' ' order by who) from rows";

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_database_and_its_fork_keep_what_is_connected_inside_and_each_has_its_own_rows() {
    let parent = base().fork();
    sql(&parent, "create table rows (who text)");
    let session = Session::begin(&parent, "127.0.0.1");
    let server = session.insert("before");

    let child = timed("fork", || parent.fork());

    assert_eq!(Session::of(&child).insert("child"), server, "the child's connection is the same");
    assert_eq!(session.insert("parent"), server, "so is the parent's");
    assert_eq!((sql(&parent, ROWS), sql(&child, ROWS)), ("before parent".into(), "before child".into()));
    for vm in [&parent, &child] {
        let check = ["pg_amcheck", "-h", "127.0.0.1", "-U", "postgres", "--install-missing", "postgres"];
        let said = timed("pg_amcheck", || vm.exec(&check));
        assert_eq!((said.code, said.stdout.as_str()), (0, ""), "{}", said.stderr);
    }
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_connection_to_a_database_outside_ends_in_the_child_at_once_and_goes_on_in_the_parent() {
    let world = World::make();
    // The database is another VM's; what leads to it is a server in the world.
    let (_, mut forks) = base().fork_with(&["--count", "2"]);
    let (parent, database) = (forks.remove(0), forks.remove(0));
    sql(&database, "create table rows (who text)");
    let name = database.name().to_owned();
    let relay = move || TestDaemon::shared().command(&["exec", "-i", &name, "nc", "127.0.0.1", "5432"]);
    world.serve(at(POSTGRES), relay);
    let session = Session::begin(&parent, &WORLD.to_string());
    let server = session.insert("before");

    let child = timed("fork", || parent.fork());

    let start = Instant::now();
    Session::of(&child).ask("select 1;");
    wait_for("the child's program is told", LIMIT, || child.exec(&["test", "-s", "/tmp/end"]).code == 0);
    progress(format_args!("told after {:?}: {}", start.elapsed(), child.read("/tmp/said")));
    assert_eq!(child.read("/tmp/end"), "2", "what psql ends with when its connection is lost");
    assert_eq!(session.insert("parent"), server, "the parent's connection is the same");
    assert_ne!(parent.exec(&["test", "-e", "/tmp/end"]).code, 0);
    child.sh("rm /tmp/ask /tmp/said /tmp/end");
    assert_ne!(
        Session::begin(&child, &WORLD.to_string()).insert("child"),
        server,
        "the child has another, which works"
    );
    assert_eq!(sql(&database, ROWS), "before child parent");
}
