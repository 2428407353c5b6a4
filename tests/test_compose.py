"""What docker-compose.yml promises, as far as it can be seen without a container engine."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

import kvcore
from kvnet.cli import main

ROOT = Path(__file__).resolve().parent.parent


class ComposeTests(SynchronousTestCase):
    def setUp(self):
        self.file = ROOT / "docker-compose.yml"
        self.compose = yaml.safe_load(self.file.read_text("utf-8"))
        self.services = self.compose["services"]

    def test_published_schema(self):
        words = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(self.file)]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_service_is_confined(self):
        for name, service in self.services.items():
            self.assertTrue(service["read_only"], name)
            self.assertEqual(service["cap_drop"], ["ALL"], name)
            self.assertEqual(service["security_opt"], ["no-new-privileges:true"], name)
            self.assertGreater(int(service["user"].split(":")[0]), 0, name)
            self.assertEqual(service["tmpfs"], ["/tmp"], name)
            for limit in ("mem_limit", "cpus", "pids_limit"):
                self.assertIn(limit, service, name)

    def test_every_service_that_stays_has_a_health_check(self):
        self.assertEqual({name for name, service in self.services.items() if not service.get("profiles")},
                         {"kvstore", "prometheus", "grafana"})
        for name, service in self.services.items():
            if service.get("profiles"):
                self.assertEqual(service["healthcheck"], {"disable": True}, name)
            else:
                self.assertEqual(service["healthcheck"]["test"][0], "CMD", name)

    def test_others_images_are_pinned(self):
        for name in ("prometheus", "grafana"):
            self.assertRegex(self.services[name]["image"], r":v?\d+\.\d+\.\d+\Z")
        for name in ("kvstore", "client", "bench"):
            self.assertEqual(self.services[name]["image"], f"kvstore:{kvcore.__version__}")

    def test_the_user_is_that_of_the_image(self):
        user = re.search(r"^USER (.+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)[1]
        for name in ("kvstore", "client", "bench"):
            self.assertEqual(self.services[name]["user"], user)

    def test_ports_are_those_of_this_machine_only(self):
        ports = [port for service in self.services.values() for port in service.get("ports", ())]
        self.assertEqual(len(ports), 4)
        for port in ports:
            self.assertRegex(port, r"\A127\.0\.0\.1:\d+:\d+\Z")

    def test_what_is_mounted_exists(self):
        used = set()
        for service in self.services.values():
            for mount in service.get("volumes", ()):
                source, _, *mode = mount.split(":")
                if source.startswith("."):
                    self.assertTrue((ROOT / source).exists(), source)
                    self.assertEqual(mode, ["ro"], mount)
                else:
                    used.add(source)
        self.assertEqual(used, set(self.compose["volumes"]))

    def test_dashboard_is_the_home(self):
        grafana = self.services["grafana"]
        settings = grafana["environment"]
        self.assertEqual((settings["GF_AUTH_ANONYMOUS_ENABLED"], settings["GF_AUTH_ANONYMOUS_ORG_ROLE"]), ("true", "Viewer"))
        home = Path(settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
        here = next(mount.split(":")[0] for mount in grafana["volumes"] if mount.split(":")[1] == str(home.parent))
        self.assertTrue((ROOT / here / home.name).exists())

    def test_clients_know_where_the_server_is(self):
        for name in ("client", "bench"):
            self.assertEqual(self.services[name]["environment"], {"KVSTORE_HOST": "kvstore"})
            self.assertEqual(self.services[name]["depends_on"], {"kvstore": {"condition": "service_healthy"}})

    def test_the_load_is_a_command_line_that_bench_takes(self):
        """As far as the connection: to a name that is none."""
        environment = {"KVSTORE_HOST": "kvstore.invalid", "KVSTORE_PORT": "8080"}
        done = CliRunner(env=environment).invoke(main, self.services["bench"]["command"], prog_name="kvstore")
        self.assertEqual(done.exit_code, 1, done.output)
        self.assertIn("kvstore.invalid", done.stderr)
