"""A data directory as format 1 wrote it, kept for ever: whatever becomes of the code, it has to be read.

Each file is base 85 of its zlib-compressed bytes. It holds a compressed value, a key with a far deadline, a deleted key, a
batch and an overwritten key, in a segment that compaction made and one that was being written.
"""

import base64
import os
import zlib

from kvcore.check import check
from tests.support import StoreCase

FORMAT_1 = {
    "0000000003.seg": (
        "c-qS@D^5-4<&t7#fB<GFEtc>&y3|X_Jy`ph$L_5zj+=ra7croL1w8JN4`i}^fULE})8xTs0QGa^=cO9zB+hhVL=!J5&o?^t!zGCc"
        "Dh@J(je&tPFR>s$CzFx2>nJl+h6Q4Q0?0LC_ScrOpz2^q%go71Edl@mVk$2"),
    "0000000004.seg": (
        "c-qS@D^5-4<&t7#fB+UKEtc>&y3|X_Jy`ph$L_5zjuY4p<T0QDg9TnP0E@5-&H"),
    "0000000005.ord": (
        "c-qS@%P&gd<&t7#U|{I!`yRl`00B&l5Sj&uXDnT*xD8161F-`TKL%m|BC82C"),
    "0000000005.seg": (
        "c-qS@D^5-4<&t7#U|;}YRt5+VOL!bz>ZRl!to_Vm_f{9jp1$t^3}`^9=DJAVd*LYz3<7J5r^!nh0>!u(7+7)>i_$Yvi!w_RHMZ*i"
        "O}N2q%gFE}H@~VXu_!esCs9YCAU`)hCBG<NM<FS(I5Q_RIbVU1;kHuUQx>+h+v=F0#<2s9V_{%mx_HW@_#!6*Lr!8zYDr>INoiWX"
        "?!>4M91I3vWx_yZY(SN1nK?PBMPM5@F#7`C1oF`8KMdRvoJU`BLKU+@6f@){7Ubt-CIYR_1OVfcNK6"),
    "MANIFEST": (
        "c-nPP%T5C^47~FdRn8m|Cw3BkW|fCmU5W0ZB%q>-e<v;oap}$WjAzEasr6`=G}Oz<JfBn_N8@FyvsH#jv&HPuB>?BqLS}Ly=Zwxd"
        "qbC2H`g!SG8jFJR-p6cnsamgw43mv@MG7Vt?Es^!?0g+R4)pbOQ}@c=t<zu;Io^0ze~^0&;eV)edgUqx`EzieBfv1b#^q?W|0-R!"
        "efi+lw_}%!LjW5BMhMnwiW*5c>H2_!^Ce)sc)YibC4-hUr4<WBQh-UZlJhg<H#XT`;{"),
    "index.ckpt": (
        "c-qS@OU^Ff<&t7#fB><C$I+!;O76kh&pdW-b#Y{2Sg^Kun!MC=c8OYMs2Ui(2THRtzyL%oOpg&%lm$vVFrb3}P=F>3H;;)CRX+oR"
        "0N7kk1_Lk+6ZPA<;0Db77f+cKU*u$95Zb))$Qh>>EPT5H<Y4N$Hfi(_!-km!GJ^?7_XDvy5Fe<Rs!6I@qio#aTmAaqKM)-O#1cTv"
        "xc~W@(J&f1@y8hSR*DIlul<3zXlCD+(J&fikFrPEgvySM|7VGU=tV#bs>mBUiql5JXp}w59(;NAeV2g>to;sZr_G+I<u;PT1ps<@"
        "DJl"),
}
CONTENTS = {
    b"filler": b"", b"late": b"tartufo", b"margherita": b"mozzarella, pomodoro, basilico " * 40, b"one": b"1", b"two": b"2"}


class GoldenTest(StoreCase):
    def setUp(self):
        super().setUp()
        os.mkdir(self.dir)
        for name, packed in FORMAT_1.items():
            with open(os.path.join(self.dir, name), "wb") as f:
                f.write(zlib.decompress(base64.b85decode(packed)))

    def test_reading(self):
        store = self.open()
        self.assertEqual((store.recovery["checkpoint"], store.recovery["messages"]), (True, []))
        self.assertEqual(dict(store.items()), CONTENTS)
        store.put(b"more", b"1")
        store.compact()
        store.close()
        self.assertEqual(self.contents(), {**CONTENTS, b"more": b"1"})

    def test_reading_without_the_caches(self):
        for name in FORMAT_1:
            if name.endswith((".ord", ".ckpt")):
                os.unlink(os.path.join(self.dir, name))
        store = self.open()
        self.assertEqual((store.recovery["checkpoint"], store.recovery["messages"]), (False, []))
        self.assertEqual(dict(store.items()), CONTENTS)

    def test_checking(self):
        self.assertEqual(check(self.dir).damage, [])
