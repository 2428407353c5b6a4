"""README.pt-BR.md says what README.md says: the same sections, commands, tables and links, in the same order."""

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


class TranslationTests(SynchronousTestCase):
    def setUp(self):
        self.pages = [(ROOT / name).read_text("utf-8") for name in ("README.md", "README.pt-BR.md")]
        self.prose = [BLOCK.sub("", page) for page in self.pages]

    def assertSame(self, found):
        """Of both pages; the first difference is shown."""
        original, translation = found
        self.assertGreater(len(original), 3)
        for ours, theirs in zip(original, translation, strict=False):
            self.assertEqual(theirs, ours)
        self.assertEqual(len(translation), len(original))

    def test_sections(self):
        self.assertSame([re.findall(r"^#+", prose, re.MULTILINE) for prose in self.prose])

    def test_what_can_be_typed(self):
        """All but the comments."""
        self.assertSame([re.sub(r" +# .*", "", "".join(BLOCK.findall(page))).split("\n") for page in self.pages])

    def test_links(self):
        """To each other first, then the same."""
        links = [re.findall(r"\]\(([^)]*)\)", prose) for prose in self.prose]
        self.assertEqual([words.pop(0) for words in links], ["README.pt-BR.md", "README.md"])
        self.assertSame(links)
        for name in links[0]:
            self.assertTrue((ROOT / name.partition("#")[0]).exists(), name)

    def test_tables(self):
        """Each row has as many cells, and the same names in them."""
        rows = [re.findall(r"^\|.*\|$", prose, re.MULTILINE) for prose in self.prose]
        self.assertSame([
            [(len(re.findall(r"(?<!\\)\|", row)), sorted(re.findall(r"`[^`]+`", row))) for row in page] for page in rows])

    def test_names(self):
        """What stands in the text as code stands in the translation as often."""
        self.assertSame([sorted(re.findall(r"``.*?``|`[^`]+`", prose)) for prose in self.prose])
