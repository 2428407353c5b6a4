"""docs/operations.md, done as it says: its commands are run, its names exist; and the unit for systemd."""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import kvcore
from kvnet import tap
from kvnet.client import Client
from tests.daemon import KVSTORE_SERVE, PATIENCE, Daemon, environment
from tests.test_golden import CONTENTS, write_format_1

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
UNIT = ROOT / "systemd" / "kvstore.service"

# They stand for the program, for systemd and for sudo; {root} stands for /. The ports are free ones, so
# `status` is told where to ask, and does not ask the monitoring port.
PROGRAM = """\
#!/bin/sh
test "$1" = status && set -- status --port "$(sed -n 's/.*text on [0-9.]*:\\([0-9]*\\) .*/\\1/p' {root}/log)"
exec {python} -m kvnet "$@"
"""
SYSTEMCTL = """\
#!/bin/sh
test "$2" = kvstore || exit 1
case $1 in
    start)
        rm -f {root}/log  # or the one of the start before would be read
        {root}/opt/kvstore/bin/kvstore serve --data-dir={root}/var/lib/kvstore/data --text=0 --metrics=0 >{root}/log 2>&1 &
        echo $! >{root}/pid
        until grep -qs 'opened in' {root}/log; do kill -0 "$(cat {root}/pid)" || exit 1; sleep 0.05; done ;;
    stop)
        kill "$(cat {root}/pid)" && tail --pid="$(cat {root}/pid)" -f /dev/null && rm {root}/pid ;;
    *)
        exit 1 ;;
esac
"""
SUDO = """\
#!/bin/sh
if [ "$1" = -u ]; then shift 2; fi
exec "$@"
"""


def section(heading):
    """The text below a heading of the second level."""
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]


def commands(heading):
    """The commands of a section, but for those that install."""
    blocks = re.findall(r"^```sh\n(.*?)^```", section(heading), re.MULTILINE | re.DOTALL)
    return "".join(block for block in blocks if "pip install" not in block)


def anchors(page):
    """What links may name in a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


class CommandsTest(SynchronousTestCase):
    """The commands of the page, with another root than /."""

    def setUp(self):
        self.root = Path(self.mktemp()).absolute()
        for name in ("bin", f"opt/kvstore-{kvcore.__version__}/bin", "opt/kvstore-old/bin", "srv", "var/lib/kvstore"):
            (self.root / name).mkdir(parents=True)
        (self.root / "opt/kvstore").symlink_to("kvstore-old")
        for name, text in (
            ("bin/systemctl", SYSTEMCTL), ("bin/sudo", SUDO), ("opt/kvstore-old/bin/kvstore", PROGRAM),
            (f"opt/kvstore-{kvcore.__version__}/bin/kvstore", PROGRAM),
        ):
            (self.root / name).write_text(text.format(root=self.root, python=sys.executable))
            (self.root / name).chmod(0o755)
        self.data = self.root / "var/lib/kvstore/data"
        self.addCleanup(lambda: (self.root / "pid").exists() and self.run_page("sudo systemctl stop kvstore"))

    def run_page(self, text):
        """Run what stands on the page; return what it prints. The first command that fails ends it."""
        text = re.sub(r"(?<!\w)/(opt|srv|var)/", rf"{self.root}/\1/", text).replace("-o kvstore -g kvstore", "")
        done = subprocess.run(
            ["bash", "-e"], input=text, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE,
            env=environment(PATH=f"{self.root}/bin:{os.environ['PATH']}"))
        self.assertEqual(done.returncode, 0, text + done.stdout + done.stderr)
        return done.stdout

    def contents(self, directory):
        with kvcore.open(directory) as store:
            return dict(store.items())

    def test_backup_and_restore(self):
        with kvcore.open(self.data) as store:
            store.update({b"a": b"1", b"b": b"2"})
        self.run_page("sudo systemctl start kvstore")
        self.assertIn("0 damaged ranges", self.run_page(commands("Backup")))
        self.run_page("sudo systemctl stop kvstore")
        with kvcore.open(self.data) as store:
            store.update({b"a": b"changed", b"c": b"3"})
        self.run_page("sudo systemctl start kvstore")
        self.assertIn("well going our operation", self.run_page(commands("Restore")))
        self.run_page("sudo systemctl stop kvstore")
        self.assertEqual(self.contents(self.data), {b"a": b"1", b"b": b"2"})
        before = self.contents(self.data.with_name("data.before"))
        self.assertEqual(before, {b"a": b"changed", b"b": b"2", b"c": b"3"})

    def test_upgrade_and_back(self):
        """From a directory as an older version left it."""
        write_format_1(self.data)
        self.run_page("sudo systemctl start kvstore")
        (self.root / "srv/backup/kvstore").mkdir(parents=True)
        out = self.run_page(f"version={kvcore.__version__}\n" + commands("Upgrade"))
        self.assertIn("kvstore-old\n", out)
        self.assertIn("well going our operation", out)
        self.assertEqual(os.readlink(self.root / "opt/kvstore"), f"kvstore-{kvcore.__version__}")
        (undo,) = re.findall(r"`(sudo ln [^`]*)`", section("Upgrade"))
        self.run_page(undo.replace("OLD", "old") + "\nsudo systemctl stop kvstore\nsudo systemctl start kvstore")
        self.run_page("sudo systemctl stop kvstore")
        self.assertEqual(self.contents(self.data), CONTENTS)
        (backup,) = (self.root / "srv/backup/kvstore").iterdir()
        self.assertEqual(self.contents(backup), CONTENTS)


class PageTest(SynchronousTestCase):
    """What the page names is there."""

    def test_links(self):
        found = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", PAGE)
        self.assertGreater(len(found), 20)
        for name, anchor in found:
            page = (ROOT / "docs" / name).resolve() if name else ROOT / "docs" / "operations.md"
            self.assertTrue(page.is_file(), name)
            if anchor:
                self.assertIn(anchor, anchors(page.read_text("utf-8")), name)

    def test_each_alert_has_its_heading(self):
        rules = ROOT / "grafana" / "alerts.yml"
        if not rules.exists():
            self.skipTest("there is no grafana/alerts.yml")
        alerts = re.findall(r"- alert: (\w+)", rules.read_text("utf-8"))
        self.assertEqual(sorted(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)), sorted(alerts))

    def test_each_option_can_be_tuned(self):
        rows = re.findall(r"^\| `--([\w-]+)` \|", section("Tuning"), re.MULTILINE)
        self.assertEqual(rows, [option.name for option in tap.OPTIONS if option.name != "data-dir"])


class UnitTest(SynchronousTestCase):
    """systemd/kvstore.service."""

    if shutil.which("systemd-analyze") is None:
        skip = "there is no systemd-analyze"

    def analyze(self, *words):
        unit = Path(self.mktemp()).absolute().with_name("kvstore.service")
        unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
        done = subprocess.run(
            ["systemd-analyze", *words, str(unit)], capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        return done.stdout

    def test_systemd_understands_it(self):
        self.analyze("verify")

    def test_exposure(self):
        self.assertIn("Overall exposure level", self.analyze("security", "--offline=true", "--no-pager", "--threshold=20"))

    def calls_of(self, words):
        """The system calls that SystemCallFilter= means by words."""
        for word in words:
            if not word.startswith("@"):
                yield word
                continue
            text = subprocess.run(
                ["systemd-analyze", "syscall-filter", "--no-pager", word], capture_output=True, text=True, check=True).stdout
            yield from self.calls_of(re.findall(r"^    ([@\w-]+)$", text, re.MULTILINE))

    def test_the_server_is_let_do_what_it_does(self):
        if shutil.which("strace") is None:
            raise SkipTest("there is no strace")
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        command = ("strace", "-D", "-f", "-qq", "-o", "calls", *KVSTORE_SERVE)
        daemon = Daemon(directory, "--segment-size=1MiB", "--fsync=always", command=command)
        self.addCleanup(daemon.kill)
        with Client("127.0.0.1", daemon.port) as client:
            for number in range(300):
                client.write(b"%d" % (number % 100), bytes(10_000))
            client.read(b"1")
            client.keys()
        host, port = daemon.addresses["metrics"][0]
        urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=PATIENCE).close()
        self.assertEqual(daemon.stop()[0], 0)
        made = set(re.findall(r"^\d+ +(\w+)\(", (directory / "calls").read_text("utf-8", "replace"), re.MULTILINE))
        self.assertLess({"fdatasync", "setpriority", "recvfrom"}, made)
        made.add("mincore")  # only when something was not in memory
        let, forbidden = re.findall(r"^SystemCallFilter=(~?)(.*)$", UNIT.read_text(), re.MULTILINE)
        self.assertEqual((let[0], forbidden[0]), ("", "~"))
        self.assertEqual(sorted(made - set(self.calls_of(let[1].split()))), [])
        self.assertEqual(sorted(made & set(self.calls_of(forbidden[1].split()))), [])

    def test_options_in_its_environment_are_options(self):
        names = re.findall(r"^Environment=(\w+)=", UNIT.read_text(), re.MULTILINE)
        self.assertEqual(names, [option.variable for option in tap.OPTIONS if option.variable in names])
        self.assertGreater(len(names), 0)
