"""grafana/: the dashboard and the alerts, as files and in a real Prometheus that scrapes a real server under load."""

import contextlib
import importlib
import itertools
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import yaml
from grafana_foundation_sdk.models import units
from twisted.trial.unittest import SynchronousTestCase

from kvnet.client import Client, ClientError
from kvnet.families import FAMILIES
from tests.daemon import PATIENCE, ROOT, Daemon

sys.path.append(str(ROOT / "tools"))
dashboard = importlib.import_module("dashboard")

GRAFANA = ROOT / "grafana"
PANELS = json.loads(dashboard.PATH.read_text())["panels"]
VARIABLES = json.loads(dashboard.PATH.read_text())["templating"]["list"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
ALERTS = yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"][0]["rules"]
UNITS = {value for name, value in vars(units).items() if not name.startswith("_")}
METRIC = re.compile(r"\b((?:kvstore|process)_[a-z_]+?)(?:_bucket|_sum|_count)?\b")


def metrics_in(expressions):
    """The names of our metrics that they ask for."""
    # What is between quotes is a label's value, and no metric begins behind a bracket of "by (...)".
    return {name for text in expressions for name in METRIC.findall(re.sub(r'"[^"]*"', "", text))}


class DashboardTests(SynchronousTestCase):
    def test_file_is_as_fresh_as_its_source(self):
        self.assertEqual(dashboard.PATH.read_text(), dashboard.render(), "run python tools/dashboard.py")

    def test_every_metric_is_shown_or_kept_apart(self):
        shown = metrics_in(QUERIES)
        apart = {family.name for family in FAMILIES if family.apart}
        self.assertEqual(shown | apart, {family.name for family in FAMILIES})
        self.assertEqual(shown & apart, set())

    def test_every_panel_says_what_it_shows(self):
        for panel in PANELS:
            if panel["type"] == "row":
                continue
            self.assertGreater(len(panel["description"]), 15, panel["title"])
            self.assertTrue(panel["description"].endswith("."), panel["title"])
            drawn = panel["options"]["yAxis"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
            self.assertIn(drawn["unit"], UNITS, panel["title"])
            self.assertTrue(panel["targets"], panel["title"])

    def test_panels_have_their_own_numbers_and_places(self):
        numbers = [panel["id"] for panel in PANELS]
        self.assertEqual(sorted(set(numbers)), sorted(numbers))
        taken = set()
        for panel in PANELS:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            self.assertEqual(taken & cells, set(), panel["title"])
            taken |= cells

    def test_everything_is_chosen_by_variables(self):
        names = [variable["name"] for variable in VARIABLES]
        self.assertEqual(names, ["datasource", "job", "instance"])
        for panel in PANELS:
            if panel["type"] != "row":
                self.assertEqual(panel["datasource"], {"type": "prometheus", "uid": "${datasource}"}, panel["title"])
        for expression in QUERIES:
            self.assertEqual(set(re.findall(r"\$(\w+)", expression)) - {"__rate_interval"}, {"job", "instance"}, expression)
            asked = re.findall(r"\b(?:(?:kvstore|process)_\w+|up|ALERTS)\b", expression)
            self.assertEqual(expression.count('{job=~"$job",instance=~"$instance"'), len(asked), expression)

    def test_provisioning_is_where_the_containers_have_it(self):
        provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "kvstore.yml").read_text())["providers"][0]
        self.assertEqual(provider["options"]["path"], "/etc/grafana/dashboards")
        sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
        self.assertEqual([(source["type"], source["isDefault"]) for source in sources], [("prometheus", True)])
        # Rates over less than four scrapes have holes; Grafana computes that from the interval that it is told.
        scraped = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())["global"]["scrape_interval"]
        self.assertEqual(sources[0]["jsonData"]["timeInterval"], scraped)


class AlertTests(SynchronousTestCase):
    def test_every_alert_says_what_it_means_and_where_to_read_on(self):
        for alert in ALERTS:
            self.assertIn(alert["labels"]["severity"], ("critical", "warning"), alert["alert"])
            self.assertEqual(set(alert["annotations"]), {"summary", "description", "runbook_url"}, alert["alert"])
            self.assertEqual(alert["annotations"]["runbook_url"], f"docs/operations.md#{alert['alert'].lower()}")

    def test_alerts_ask_for_metrics_that_exist(self):
        asked = metrics_in(alert["expr"] for alert in ALERTS)
        self.assertGreater(len(asked), 5)
        self.assertEqual(asked - {family.name for family in FAMILIES}, set())

    def test_every_alert_is_tried(self):
        tried = set(re.findall(r'alertname="(\w+)",alertstate="firing",', (GRAFANA / "alerts.test.yml").read_text()))
        self.assertEqual(tried, {alert["alert"] for alert in ALERTS})


class PromtoolTests(SynchronousTestCase):
    skip = None if shutil.which("promtool") else "needs promtool (Debian: prometheus)"

    def promtool(self, *words):
        done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_configuration_and_rules_are_valid(self):
        self.promtool("check", "config", GRAFANA / "prometheus.yml")
        self.promtool("check", "rules", "--lint=all", "--lint-fatal", GRAFANA / "alerts.yml")

    def test_each_alert_fires_when_it_should_and_not_when_not(self):
        self.promtool("test", "rules", GRAFANA / "alerts.test.yml")


class Prometheus:
    """A Prometheus with our configuration, that scrapes one server, often, and lets no alert wait."""

    def __init__(self, directory, target):
        config = (GRAFANA / "prometheus.yml").read_text().replace("kvstore:9464", target).replace("15s", "200ms")
        (directory / "prometheus.yml").write_text(config)
        rules = re.sub(r"for: \w+", "for: 0s", (GRAFANA / "alerts.yml").read_text())
        (directory / "alerts.yml").write_text(rules)
        self._process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=series", "--web.listen-address=127.0.0.1:0"],
            cwd=directory, stderr=subprocess.PIPE, text=True)
        self._watchdog = threading.Timer(PATIENCE, self._process.kill)
        self._watchdog.start()
        said = ""
        while "Server is ready" not in said:
            line = self._process.stderr.readline()
            if not line:
                raise AssertionError(f"prometheus ended with status {self.stop()}: {said}")
            said += line
        self._address = re.search(r'"Listening on" address=(\S+)', said)[1]

    def ask(self, path, **parameters):
        """The data that a page of its interface answers with."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def stop(self):
        self._watchdog.cancel()
        self._process.kill()
        self._process.communicate()
        return self._process.returncode


class Load(threading.Thread):
    """Clients that use every command, some of them wrongly, until stop()."""

    def __init__(self, port):
        super().__init__()
        self._port = port
        self._stopping = threading.Event()

    def run(self):
        address = ("127.0.0.1", self._port)
        with Client(*address) as client, socket.create_connection(address, timeout=PATIENCE) as stranger:
            for turn in itertools.count():
                value = b"%d of a value that can be compressed. " % turn * 100
                client.write(b"kept%d" % turn, value)  # for compaction to copy
                for key in range(40):
                    client.write(b"key%d" % key, value)
                client.read(b"key1")
                client.keys()
                client.reads(b"key1")
                client.status()
                client.delete(b"key1")
                for missing in (client.delete, client.read):
                    with contextlib.suppress(ClientError):
                        missing(b"key1")
                stranger.sendall(b"GET / HTTP/1.1\r")
                stranger.recv(100)
                if self._stopping.is_set():
                    return

    def stop(self):
        self._stopping.set()
        self.join()


class LiveTests(SynchronousTestCase):
    skip = None if shutil.which("prometheus") else "needs prometheus (Debian: prometheus)"

    def setUp(self):
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        daemon = Daemon(directory, "--fsync=always", "--segment-size=1MiB")
        self.addCleanup(daemon.kill)
        self.target = "{}:{}".format(*daemon.addresses["metrics"][0])
        load = Load(daemon.port)
        load.start()
        self.addCleanup(load.stop)
        self.prometheus = Prometheus(directory, self.target)
        self.addCleanup(self.prometheus.stop)

    def chosen(self, expression):
        """The expression as Grafana asks it when this server is chosen."""
        for name, value in (("$job", "kvstore"), ("$instance", self.target), ("$__rate_interval", "10s")):
            expression = expression.replace(name, value)
        return expression

    def numbers(self, expression):
        """What it comes to now, without what is none: 0 / 0."""
        found = self.prometheus.ask("query", query=expression)["result"]
        return [number for number in (float(series["value"][1]) for series in found) if math.isfinite(number)]

    def wait_for(self, wanted, *words):
        """Ask until there is an answer."""
        deadline = time.monotonic() + PATIENCE
        while not (found := wanted(*words)):
            self.assertLess(time.monotonic(), deadline, f"no data: {words}")
            time.sleep(0.05)
        return found

    def rules(self):
        """The alerts as Prometheus has them, when all have been evaluated and the one for which we wait fires."""
        rules = {rule["name"]: rule for rule in self.prometheus.ask("rules")["groups"][0]["rules"]}
        return rules if rules["KvstoreBackupOld"]["state"] == "firing" else None

    def values(self, query):
        """What label_values(SERIES, LABEL) is to Grafana."""
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
        return self.prometheus.ask(f"label/{label}/values", **{"match[]": self.chosen(series)})

    def test_every_expression_has_an_answer(self):
        for expression in QUERIES:
            self.wait_for(self.numbers, self.chosen(expression))
        job, instance = (self.wait_for(self.values, variable["query"]["query"]) for variable in VARIABLES[1:])
        self.assertEqual((job, instance), (["kvstore"], [self.target]))
        rules = self.wait_for(self.rules)
        self.assertEqual({name: rule["health"] for name, rule in rules.items()}, {alert["alert"]: "ok" for alert in ALERTS})
        self.assertEqual(
            [name for name, rule in rules.items() if rule["state"] == "firing" and rule["labels"]["severity"] == "critical"],
            [])
