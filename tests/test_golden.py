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
        "c-qS@D^5-4<&t7#fB<GFeIv@lMYN_t_2GT-@_Bvlt{K|T*usDYIQZs2|MUI090S9Iw>PHAgUtZy=g7}XH8kil6<|aYFDcJATJ&q#"
        "7bd7U$P6|H2F|?1g8ZCJ*>`HwnV~W)5DOGQuCcQ<F=j#4!H|}jlapEm0AtuMsQ"),
    "0000000004.seg": (
        "c-qS@D^5-4<&t7#fB+UKeIv@lMYN_t_2GT-@_BvluBis8u4O<2%P&9r0syvn4<Y"),
    "0000000005.ord": (
        "c-qS@%P&gd<&t7#U|={{a`!ze0|YQJLTDBsu1r12x(!J81F-`TKL%m|HPi`u"),
    "0000000005.seg": (
        "c-qS@D^5-4<&t7#U|;}YRt5;T5#`|`TGOEV@V<EYyuNqW4wl?~&wvK3ZkLri&qxVjV7Tz~#x!{;L!cNJ0|QHLVo`cVYEfoMqQ+MJ"
        "zX>;(Z5bJU<mOjZB^IUT<Rt1S6y)dTr{ovq>nJ287H8&UCg&?KGTc_Gd&+W5)X|B7;Q`n<cA#-A3=B+ha@NHcIT;vo5=&A`5{pVo"
        ")AEDgHqGN;nD88=Oc<z)4X83LGbbmt2yEj9W?u#d0g#7Q|6$-(=sHrx302GrQOuB+SdgESnFzEx697N|P2T"),
    "MANIFEST": (
        "c-nPO%T5C^5WDjgRn8ppo(Vs*%EPO!M0ZgVP*KIdlN5wFz->JC*q)nMk9vt+Je}0zNwj`cEL#~+6n4?FwaQUusU1{V6%hq6fa1l_"
        "pJO{O4Y^`E2%SPSb}gDvoJt%NqID@axn=~P=E;t0|4Q&54>xh2%so1GOq1gUyZE8(|CIYpHN<C>8IayP+E{7F16AasmiFy*+4kiP"
        "wQa{fKW5g3gVf~6GwI;v)Wqwb8ZW&zMh2Q0uXV%hAZMFgv(b6Bu*~3MX_Wi~zpP+j"),
    "index.ckpt": (
        "c-mdp3s{YJ90%}I7@^59G?!RWlgZQ+Wo2bWCQ}qL_pw~s%5@lBTn=5W3wg>)T6Yzv6qTZ*;-rge-A*Z$tfGtP6szg`eI9$C=REJ{"
        "InVo^^Pd0Z`}-Zc{aftp6^AR!3Em&2YfX*E9XYO6BOQMr(7mO2u)wpq)OV`#g4d$JK?B#|d~4u5M1bS{wYcZ2fp-TFoDBsZ9`6Q@"
        "|Gmx6lb8GOeu3c8)Bev@5O_B9pYiTXC(Cts{tZ(WI^-(|1U(5V3Nu1%FUEVue9P+;U7g@!`<uCNT34?U>@U1y1KVgm{uMs9^4UUo"
        "d~tL&tQF}M4r|BUUj>gT?BMeqw!C%+w$(Uy8g^E1(Som76&!*e7Wf9kO|cQr;g*Q@(QtN2o;7^g;;b`#YIb4{+^iPz3eK?(N`phB"
        "<y&Ew;D*`o@vzhqIIPSm5SG|xnZVCfx<|tEr}<xpmDXSBg%6ci&ww{vt=J2%4RQ5>k5=8RfXCYO4u$8b-uWI*H+%d$+@SsJYuG&@"
        "x)~0acwK>`bMJ3}g`$q}aP8b{58%7z=Uids<t+xVfmVSdY?<gA3p?aQ)WZkz+9$yl@p)FTp3Yf!c#3JF7<M!ak-@7Bg5u!?$>lrY"
        "$>IhTcw$Cs8N4XX={&qfH_H^ZH|fSw7sMF*--OTTU3mdlr&iB`#hDeG;mj;of4DB?W<Knu-#Z+RFuKG2GU}J2^|1QL#&NLG*(eFT"
        "{gvk_cyoL9QP{-2QybP)h--yMIJ#YhAMb0O0=Eq-TmuJq_??4qwME{8le*fzfrEsS{qQSAVKkg?FRFu64hEOPmxcs-!JSTJOW}fd"
        "^@ErR-Dz)_6{no9F%tx0J7&dE*>rf*kqZ~$C32yK@SKx1!{A}EN+WpWTbC4gmUB`Yym)Yr2E6T1`bOAyY|%<MZfD~JxU?lIlNoy6"
        "QwYm^v+d!E=bd`+ja_k1VDHgxk+8W^>loN>ci~!CzRB+dtmYSaAD-sjhDaBD)GGN6-n&D188#g!dInFQ9Q>G>zA^9;ysM$?J9yc}"
        "`j6oiL1`WEjwjByVYzMM?eL5VvN`bUi5L7}>DJIHSX5iXlH?UwX%71YxQO8R`Xtt!@=ZOeaL=Ul-OPmKq9x1<apNdvf?-q<Hla+c"
        "B1LWMpCI>x#*dg0y4gQ5J4`yi#65BybN|}|{UP69B!(}lbYYgHx!q#srM9y4rDql{XXY9E`7#UjBBjhc{Wdjbp^;=4GcQY+$Sh0|"
        "y=7)31ZOZyB!Op{8D?b`%o6STiOh_-X|>D}bLR;Bp8i@Z-*@)td(G^787~!b4Y-M9y0}hJM|+R_z*w#5d#!F6&Utmr3C(6EF0c87"
        "S*caIj+v<A@+Y&>G^vr9nAbCpSs9;xm^D>ew2ZYjxKW-pRW0go)>>;%Pu5i1?4Ma{RXRUsO%02C&01UL7RR2Tyj6j{!qq~yH(JyD"
        "0@y38k1SwMVAH0~UO`o|i9JDxFqyqVm8hLHwKzDBwKg*FBx|Z>nJsJW%KEVw-=VU#NBYm!18Xt5?QS`1uZD9NYix}82y1VlOou%}"
        "!38(=4zZzk*(0deOl9w2Rk@lyf`v;IdxzOcPuU|x^ekfUP?COt_vRL}lXDR@nen^k#(47?%)R-{60_WC{7mhx9sI6@gakf=#G{*I"
        "k=MMKV-%l1f@7!S!#$~F8h(Mleff(m922bvUvR7vPrqcJl5;(YbD43O`&29K(nHR@Zt1676DD;(axM*ThjNY$PW;2UPrf&wYeM|y"
        "7}sJ}Ko-|%N|*=Nu70g0*R+vzGS{N<$p)@bz2q3K-PE`HxTZ5R^tqQ}iWRxX3Y(0%_bg+A*r#ZCbCT9*=4x_}t?b&yy;q!&$~_tB"
        "(Z#HYXkNh#Darqc*<#^S$;_D@{s*%`{ly;k9aax!GFu8x_b_u}uis$Sg<U?w3@p2p&TO<T{fwEZQuhP1PVM$z%s}fCHOxloy#>t7"
        ";5QEJ`$7WvpTMCijQ<ssZEE?Sz(7^1^e+tfdgT"),
}
CONTENTS = {
    b"filler": b"", b"late": b"tartufo", b"margherita": b"mozzarella, pomodoro, basilico " * 40, b"one": b"1", b"two": b"2"}


def write_format_1(directory):
    """Make the directory."""
    os.mkdir(directory)
    for name, packed in FORMAT_1.items():
        with open(os.path.join(directory, name), "wb") as f:
            f.write(zlib.decompress(base64.b85decode(packed)))


class GoldenTest(StoreCase):
    def setUp(self):
        super().setUp()
        write_format_1(self.dir)

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
