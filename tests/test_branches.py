"""tools/branches.py reads what Cython writes; these are the forms it must tell apart."""

import importlib.util
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "branches.py"
spec = importlib.util.spec_from_file_location("branches", SCRIPT)
branches = importlib.util.module_from_spec(spec)
spec.loader.exec_module(branches)

SOURCE = """\
cdef int f(list numbers) except -1:
    if not g(numbers):
        return 0
    for number in numbers:
        if number < 0 or number > 9:
            raise ValueError(number)
    with lock:
        h()
"""

# Number of times, number of times each way, and the C.
GENERATED = """\
 1       |static int f(PyObject *__pyx_v_numbers) {
         |  /* "kvcore/x.pyx":2
         | *     if not g(numbers):             # <<<<<<<<<<<<<<
         | */
 7       |  __pyx_t_1 = g(__pyx_v_numbers); if (unlikely(__pyx_t_1 == ((int)-1))) __PYX_ERR(0, 2, __pyx_L1_error)
 7 7 0   |  if (!__pyx_t_1) {
         |    /* "kvcore/x.pyx":3
         | */
 0       |    __pyx_r = 0;
         |  }
         |  /* "kvcore/x.pyx":4
         | */
         |  for (;;) {
 9 7 2   |    if (__pyx_t_2 >= __pyx_temp) break;
 2       |    __pyx_v_number = __pyx_t_3;
         |    /* "kvcore/x.pyx":5
         | */
 2 0 2   |    if (!__pyx_t_4) {
         |    } else {
 0       |      goto __pyx_L8_bool_binop_done;
         |    }
 2       |    __pyx_t_4 = (__pyx_v_number > 9);
 2 0 2   |    if (unlikely(__pyx_t_4)) {
         |      /* "kvcore/x.pyx":6
         | */
 0       |      __pyx_t_5 = __Pyx_PyObject_CallOneArg(ValueError, __pyx_t_6); if (unlikely(!__pyx_t_5)) __PYX_ERR(0, 6, __pyx_L1_error)
         |    }
         |  }
         |  /* "kvcore/x.pyx":7
         | */
 7 7 0   |  if (__pyx_t_9) {
         |  }
         |  /* "kvcore/x.pyx":8
         | */
 7       |  h();
         |  /* function exit code */
 7 0 7   |  if (__pyx_t_1) {
         |  }
"""  # noqa: E501


class BranchesTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        (self.folder / "kvcore").mkdir(parents=True)
        (self.folder / "kvcore" / "x.pyx").write_text(SOURCE)
        lines = [line.partition("|") for line in GENERATED.splitlines()]
        (self.folder / "x.c").write_text("\n".join(text for _, _, text in lines))
        counts = {
            number: (int(times.split()[0]), "f", [int(way) for way in times.split()[1:]])
            for number, (times, _, _) in enumerate(lines, 1) if times.strip()
        }  # fmt: skip
        self.patch(branches, "gcov", lambda folder, notes: ("x.c", counts))
        self.coverage = branches.Coverage()
        self.coverage.add(self.folder, None)

    def test_what_was_not_taken(self):
        self.assertEqual(list(branches.missing(self.coverage, self.folder)), [
            "kvcore/x.pyx:2: never true: if not g(numbers):",
            "kvcore/x.pyx:3: never ran: return 0",
            "kvcore/x.pyx:5: never true (1 of 2): if number < 0 or number > 9:",
            "kvcore/x.pyx:5: never true (2 of 2): if number < 0 or number > 9:",
            "kvcore/x.pyx:6: never ran: raise ValueError(number)",
        ])  # fmt: skip

    def test_table(self):
        row = list(branches.table(self.coverage))[1]
        self.assertEqual(row.split(), ["kvcore/x.pyx", "5/7", "71.4", "%", "5/8", "62.5", "%"])

    def test_counts_of_several_modules_are_added_up(self):
        (ways,) = self.coverage.branches["kvcore/x.pyx", 2].values()
        self.assertEqual(ways, [0, 7])
        ways[0] = 5
        self.coverage.add(self.folder, None)
        self.assertEqual(ways, [5, 14])
