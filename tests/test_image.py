"""What the Dockerfile promises, as far as it can be seen without running it.

tools/image.py runs its steps and what they make; that takes minutes and a Debian root.
"""

import importlib.util
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvnet import health, places, tap

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("dockerfile", ROOT / "tools" / "dockerfile.py")
dockerfile = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dockerfile)


class ImageTests(SynchronousTestCase):
    def setUp(self):
        self.stages = dockerfile.stages((ROOT / "Dockerfile").read_text("utf-8"))
        self.last = {step.name: step for step in self.stages[-1]}

    def environment(self):
        """The variables that the image sets, as (name, value)."""
        return [word.split("=", 1) for word in self.last["ENV"].words]

    def test_bases_are_slim_and_pinned(self):
        bases = [stage[0].words[0] for stage in self.stages]
        self.assertEqual(len(bases), 2)
        for base in bases:
            self.assertRegex(base, r"\Apython:\d\.\d+-slim-bookworm\Z")

    def test_no_compiler_in_the_last_stage(self):
        self.assertIn("build-essential", " ".join(step.rest for step in self.stages[0]))
        for step in self.stages[-1]:
            self.assertNotRegex(step.rest, r"\b(apt-get|pip)\b")

    def test_not_root(self):
        user, group = self.last["USER"].rest.split(":")
        self.assertGreater(int(user), 0)
        self.assertGreater(int(group), 0)

    def test_signals_reach_the_server(self):
        for name in ("ENTRYPOINT", "CMD"):
            self.assertTrue(self.last[name].rest.startswith("["), name)
        self.assertEqual(self.last["ENTRYPOINT"].words + self.last["CMD"].words, ["kvstore", "serve"])
        self.assertEqual(self.last["STOPSIGNAL"].rest, "SIGTERM")

    def test_the_probe_has_more_time_than_its_own_time_out(self):
        probe = self.last["HEALTHCHECK"]
        self.assertEqual(probe.rest, 'CMD ["kvstore", "health"]')
        self.assertGreater(int(probe.options["--timeout"].removesuffix("s")), health.TIMEOUT)

    def test_variables_are_options(self):
        known = {option.variable: option for option in tap.OPTIONS}
        variables = dict(self.environment())
        self.assertEqual({name for name in variables if name != "PATH"} - set(known), set())
        for name in ("KVSTORE_TEXT", "KVSTORE_METRICS"):
            place = places.find(known[name].parse(variables[name]), "kvstore")
            self.assertEqual(place[0], "kvstore")
            self.assertIn(str(place[1]), self.last["EXPOSE"].words)
        self.assertTrue(variables["KVSTORE_DATA_DIR"].startswith(self.last["VOLUME"].rest + "/"))

    def test_context_is_what_the_wheel_needs(self):
        files = dockerfile.context_files(ROOT)
        for name in ("kvcore/store.pyx", "kvcore/store.pxd", "kvnet/py.typed", "kvnet/cli.py", "setup.py", "README.md",
                     "pyproject.toml", "LICENSE", "twisted/plugins/kvstore_plugin.py", "tools/preflight.py"):
            self.assertIn(name, files)
        for name in files:
            self.assertNotRegex(name, r"\A(docs|tests|build|data|\.)|\.so\Z|__pycache__|dropin\.cache")


class ReaderTests(SynchronousTestCase):
    def test_instructions(self):
        text = (
            "# c\nFROM a AS b\nRUN x \\\n  # c\n  && y\n"
            'HEALTHCHECK --interval=1s --retries=2 CMD ["a", "b c"]\nENV A=1 B=$A:2\n'
        )
        steps = dockerfile.steps(text)
        self.assertEqual([step.name for step in steps], ["FROM", "RUN", "HEALTHCHECK", "ENV"])
        self.assertEqual(steps[1].rest.split(), ["x", "&&", "y"])
        self.assertEqual(steps[2].options, {"--interval": "1s", "--retries": "2"})
        self.assertEqual(steps[3].words, ["A=1", "B=$A:2"])
        self.assertEqual(dockerfile.expanded("$A-${A}-$B", {"A": "1"}), "1-1-")
        self.assertEqual(len(dockerfile.stages(text + "FROM c\n")), 2)

    def test_ignored_files(self):
        root = Path(self.mktemp())
        for name in ("a/x.py", "a/b/x.so", "a/b/x.py", "c.md", "d/e/f", "d/e/g"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        for rules, files in (
            ("", ["c.md", "a/x.py", "a/b/x.py", "a/b/x.so", "d/e/f", "d/e/g"]),
            ("*\n!a\n**/*.so\n", ["a/x.py", "a/b/x.py"]),
            ("# c\n*\n!d/e/f\n", ["d/e/f"]),
            ("a/*\n?.md\n", ["d/e/f", "d/e/g"]),
        ):
            (root / ".dockerignore").write_text(rules)
            found = [name for name in dockerfile.context_files(root) if name != ".dockerignore"]
            self.assertEqual(sorted(found), sorted(files), rules)
