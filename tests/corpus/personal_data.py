"""Labelled texts: what stands between ⟦kind: and ⟧ is personal or secret, everything else is not. All of it made up.

POSITIVE and NEGATIVE are the forms the patterns were made for; HARD holds what people also write, found or not: it
tells how far the patterns reach.
"""

import re

_MARK = re.compile(r"⟦(\w+):(.*?)⟧", re.DOTALL)


def labelled(marked: str) -> tuple[str, set[tuple[str, str]]]:
    """The text without its marks, and the set of (kind, what it is)."""
    return _MARK.sub(r"\2", marked), {match.groups() for match in _MARK.finditer(marked)}


POSITIVE = """
Write to ⟦email:anna.schmidt+mill@posteo.de⟧ or ⟦email:j_doe99@mail.uni-kiel.de⟧.
From: Jo Li <⟦email:jo.li@corp.co.uk⟧>
mailto:⟦email:k.ito@sub.domain.jp⟧?subject=hello
The author (⟦email:x@y.io⟧) answers; also "⟦email:UPPER.CASE@MAIL.RU⟧".
contact=⟦email:first-last@some-host.museum⟧, cc ⟦email:o.brien@server.ie⟧;
邮箱：⟦email:wang.wei@qq.cn⟧。
Call ⟦phone:+49 30 901820⟧ or ⟦phone:+1 (212) 555-0187⟧ today.
Phone: ⟦phone:(415) 555-2671⟧, fax ⟦phone:415-555-2672⟧.
Tel. ⟦phone:+44 20 7946 0958⟧; mobile ⟦phone:+33 6 12 34 56 78⟧
whatsapp ⟦phone:+91-98765-43210⟧ / ⟦phone:212.555.0143⟧
Berlin: ⟦phone:030 901-8200⟧
toll free ⟦phone:1-800-555-0199⟧
电话 ⟦phone:+86 138 1234 5678⟧
Failed password from ⟦ip:185.220.101.34⟧ port 22
client ⟦ip:81.2.69.160⟧, upstream: ⟦ip:93.184.216.34⟧
addr=⟦ip:2a00:1450:4001:81b::200e⟧ seen
ping ⟦ip:2606:4700:4700::1111⟧
pay with ⟦card:4111 1111 1111 1111⟧ (Visa)
card no ⟦card:5500005555555559⟧, or ⟦card:3782-822463-10005⟧
⟦card:6011 0009 9013 9424⟧ expires 12/27
IBAN: ⟦iban:DE89 3704 0044 0532 0130 00⟧
konto ⟦iban:GB82WEST12345698765432⟧, ⟦iban:FR1420041010050500013M02606⟧
⟦iban:NL91 ABNA 0417 1643 00⟧ thanks
aws_access_key_id = ⟦key:AKIAIOSFODNN7EXAMPLE⟧
token: ⟦key:ghp_16C7e42F292c6912E7710c838347Ae178B4a⟧
export SLACK=⟦key:xoxb-123456789012-1234567890123-AbCdEfGhIjKl⟧
key=⟦key:AIzaSyA1234567890abcdefghijklmnopqrstuv⟧
HF ⟦key:hf_abcdefghijklmnopqrstuvwxyzABCDEFGH⟧
⟦key:-----BEGIN RSA PRIVATE KEY-----
MIIEpAIBAAKCAQEA1234
-----END RSA PRIVATE KEY-----⟧
Authorization: Bearer ⟦key:eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U⟧
Ring me at ⟦phone:0171 2345678⟧ when the spare key is in the pot, or leave word with the doorman.
"""

NEGATIVE = """
@property and @pytest.mark.parametrize decorate functions; user@host is a prompt.
git clone git@github.com:millrace/millrace.git; write to someone@example.com or a@b.
matrix @ vector gives rows@columns; foo@bar has no domain; see x@1.2.3 in package.json
pi is 3.14159265358979, e is 2.718281828459045; 2 147 483 647 is the largest int.
Released 2024-01-15, amended 2025-12-31 23:59:59; ISBN 978-3-16-148410-0.
ISO date range 2020-2024; pages 123-456; RFC 2822; section 1.2.3.4 of version 10.0.19041.1
listen on 127.0.0.1:8080, or 0.0.0.0, or 192.168.1.20; gateway 10.0.0.1; docs use 203.0.113.7
netmask 255.255.255.0; link-local fe80::1; loopback ::1; documentation 2001:db8::1
at 12:30:45 or 01:02:03:04; MAC 00:1A:2B:3C:4D:5E; std::vector::begin; a::b::c
order number 1234 5678 9012 3456; tracking 4111111111111112; id 0000000000000000
timestamps 1700000000 and 1700000000000; hash deadbeefdeadbeefdeadbeefdeadbeef
uuid 123e4567-e89b-12d3-a456-426614174000; sha 5891b5b522d5df086d0ff0b110fbd9d21bb4fc71
GB82 WEST 1234 5698 7654 33 has wrong check digits; DE00 is short; AB12 CDEF
sk-learn, sk-short, hf_hub_download, ghp_short, eyJ alone, AKIA alone, npm_config_registry
-----BEGIN PUBLIC KEY-----
array([[100, 200, 300], [400, 500, 600]]) x = 5 + 3 - 555; 1.234.567,89 EUR
0.30.901.8200 is no phone; 12345 67890; call(212, 555) returns 0187
chromosome 7:55086714-55324313; lat 52.5200, lon 13.4050; 1e-10; +0.5; 10-20-30
十二月三十一日 1999-12-31；价格 128 元；第 3.1.2.4 节 v2.10.3.44
Windows 10.0.22621.2506 and Chrome/120.0.6099.109 shipped; kernel 5.15.0-91-generic
phone book, credit card, private key, e-mail: only words.
2**34 is 17179869184 bytes; order 13800001111 of 2024; 0049 of 1000; row 0012 3456 78; (0) 1234; (050) units
"""

HARD = """
Reach me at ⟦email:anna (at) posteo (dot) de⟧ or ⟦email:jo [at] corp [dot] example-mail.com⟧;
⟦email:max@münchen-büro.de⟧,
请发邮件至⟦email:zhang@163.com⟧联系，电话⟦phone:13912345678⟧转。
“⟦email:li.wei@通信.cn⟧”，or ⟦email:"john smith"@server.ie⟧; Email:⟦email:kontakt@firma24.de⟧|⟦email:a.b+c@x-y.co.jp⟧
⟦email:user%relay@gate.org⟧ wrote; cc:⟦email:x_1@a.b.c.dev⟧ (⟦email:SALES@BIG.SHOP⟧), <a href="mailto:⟦email:q@r.st⟧">
Phone ⟦phone:5551234⟧; home ⟦phone:555-0142⟧, ⟦phone:+4930901820⟧, ⟦phone:0049 30 901820⟧, ⟦phone:(030) 901820⟧
Tel: ⟦phone:+81-3-1234-5678⟧ / ⟦phone:+55 11 91234-5678⟧ / ⟦phone:02 9876 5432⟧ / ⟦phone:+7 (495) 123-45-67⟧
手机：⟦phone:13812345678⟧；座机 ⟦phone:010-62345678⟧。Call ⟦phone:1 800 555 0123⟧ or ⟦phone:+39 06 698 83712⟧.
Card ⟦card:4012-8888-8888-1881⟧, Amex ⟦card:378282246310005⟧, Diners ⟦card:3056 9309 0259 04⟧,
JCB ⟦card:3530 1113 3330 0000⟧
IBAN ⟦iban:ch93 0076 2011 6238 5295 7⟧, ⟦iban:AT611904300234573201⟧,
⟦iban:BE68-5390-0754-7034⟧, ⟦iban:NO93 8601 1117 947⟧
host ⟦ip:8.8.8.8⟧ answered, then ⟦ip:1.1.1.1⟧:53, [⟦ip:2001:4860:4860::8888⟧]:443,
⟦ip:151.101.1.69⟧/24 and ⟦ip:52.94.236.248⟧.
password=⟦key:hunter2-Correct-Horse⟧; AWS secret ⟦key:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY⟧;
⟦key:ASIAY34FZKBOKMUTVV7A⟧
"github_token": "⟦key:github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789⟧", GL ⟦key:glpat-abcdefghij_ABCDEFGH1⟧,
openai ⟦key:sk-proj-AbCdEfGhIjKlMnOpQrStUvWxYz0123456789abcd⟧ stripe ⟦key:sk_live_4eC39HqLyjWDarjtT1zdp7dc⟧
⟦key:npm_abcdefghijklmnopqrstuvwxyz0123456789⟧
"""
