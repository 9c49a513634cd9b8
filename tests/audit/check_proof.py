#!/usr/bin/env python3
"""Second implementation of the audit log's checks, for whoever does not want to trust the first.

    check_proof.py PROOF VKEY_FILE        checks a record proof, end to end
    check_proof.py --log DIR VKEY_FILE    counts the root of a whole log of plain segments anew and
                                          checks every checkpoint in it and the file `checkpoint`

Written from the documents alone (RFC 8032, RFC 6962, c2sp.org/signed-note,
c2sp.org/tlog-checkpoint, c2sp.org/tlog-proof and the format in audit-log/src/encoding.rs), with
nothing but Python's standard library. Prints what it has checked; when something is wrong, one
line and exit code 1.
"""

import base64
import hashlib
import json
import re
import sys
from pathlib import Path

PROOF_BYTES_MAX = 1 << 20
HASHES_MAX = 63


class Wrong(Exception):
    """What is wrong, in one line."""


def require(condition, message):
    if not condition:
        raise Wrong(message)


# RFC 8032 section 5.1: Ed25519.

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)


def add(one, other):
    x1, y1, z1, t1 = one
    x2, y2, z2, t2 = other
    a, b = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    c, d = 2 * t1 * t2 * D % P, 2 * z1 * z2 % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(scalar, point):
    result = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def decode_point(data):
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    require(y < P, "a point of the signature or key is not on the curve")
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    require((x * x - square) % P == 0, "a point of the signature or key is not on the curve")
    require(not (x == 0 and sign), "a point of the signature or key is not on the curve")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def equal(one, other):
    x1, y1, z1, _ = one
    x2, y2, z2, _ = other
    return (x1 * z2 - x2 * z1) % P == 0 and (y1 * z2 - y2 * z1) % P == 0


BASE = decode_point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def ed25519_is_valid(public, message, signature):
    require(len(public) == 32 and len(signature) == 64, "the signature has a wrong length")
    s = int.from_bytes(signature[32:], "little")
    if s >= ORDER:
        return False
    key, commitment = decode_point(public), decode_point(signature[:32])
    digest = hashlib.sha512(signature[:32] + public + message).digest()
    challenge = int.from_bytes(digest, "little") % ORDER
    return equal(multiply(s, BASE), add(commitment, multiply(challenge, key)))


# RFC 6962 section 2.1: Merkle trees.


def leaf_hash(data):
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_from_path(index, size, leaf, path):
    """RFC 9162 section 2.1.3.2, which fits the trees of RFC 6962."""
    require(0 <= index < size, f"index {index} is not in a tree of {size} records")
    fn, sn, result = index, size - 1, leaf
    for sibling in path:
        require(sn > 0, "the proof has too many hashes")
        if fn & 1 or fn == sn:
            result = node_hash(sibling, result)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            result = node_hash(result, sibling)
        fn, sn = fn >> 1, sn >> 1
    require(sn == 0, "the proof has too few hashes")
    return result


class Tree:
    """The roots of the perfect subtrees so far, as (height, hash), largest first."""

    def __init__(self):
        self.size, self.peaks = 0, []

    def append(self, leaf):
        peak = (0, leaf)
        while self.peaks and self.peaks[-1][0] == peak[0]:
            height, left = self.peaks.pop()
            peak = (height + 1, node_hash(left, peak[1]))
        self.peaks.append(peak)
        self.size += 1

    def root(self):
        if not self.peaks:
            return hashlib.sha256().digest()
        result = self.peaks[-1][1]
        for _, left in reversed(self.peaks[:-1]):
            result = node_hash(left, result)
        return result


# c2sp.org/signed-note and c2sp.org/tlog-checkpoint.


def decode_base64(text, what):
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise Wrong(f"{what} is not base64") from None
    require(base64.b64encode(data).decode() == text, f"{what} is not base64 in its one form")
    return data


def read_key(path):
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    require(len(lines) == 1, f"`{path}` does not hold exactly one key")
    parts = lines[0].split("+", 2)
    require(len(parts) == 3, f"`{path}` does not hold a C2SP verifier key")
    name, key_id, public = parts[0], parts[1], decode_base64(parts[2], "the key")
    require(len(public) == 33 and public[0] == 1, "the key is not one of Ed25519")
    computed = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    require(computed.hex() == key_id, "the key's id is not that of its name and bytes")
    return name, computed, public[1:]


def open_checkpoint(note, key):
    """Returns (size, root) of a checkpoint that the key signed."""
    name, key_id, public = key
    text, separator, signatures = note.rpartition("\n\n")
    require(separator and signatures.endswith("\n"), "this is not a signed note")
    text += "\n"
    good = False
    for line in signatures[:-1].split("\n"):
        match = re.fullmatch(r"— ([^ +]+) (\S+)", line)
        require(match, "a line of the signatures is not a signature")
        data = decode_base64(match[2], "a signature")
        if match[1] == name and data[:4] == key_id:
            require(
                ed25519_is_valid(public, text.encode(), data[4:]),
                f"the signature of `{name}` does not fit the checkpoint",
            )
            good = True
    require(good, f"the checkpoint is not signed by the key of `{name}`")
    lines = text[:-1].split("\n")
    require(len(lines) >= 3 and lines[0] == name, f"the checkpoint is not one of `{name}`")
    require(re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]), "the checkpoint names no size")
    root = decode_base64(lines[2], "the root in the checkpoint")
    require(len(root) == 32, "the root in the checkpoint is not a SHA-256 hash")
    return int(lines[1]), root


# c2sp.org/tlog-proof.


def check_proof(path, key):
    data = Path(path).read_bytes()
    require(len(data) <= PROOF_BYTES_MAX, "the proof is too long")
    head, separator, note = data.decode().partition("\n\n")
    require(separator, "the proof holds no checkpoint")
    lines = head.split("\n")
    require(lines[0] == "c2sp.org/tlog-proof@v1", "this is not a tlog-proof")
    require(len(lines) >= 3 and lines[1].startswith("extra "), "the proof does not hold the record")
    record = decode_base64(lines[1].removeprefix("extra "), "the record")
    match = re.fullmatch(r"index (0|[1-9][0-9]{0,18})", lines[2])
    require(match, "the proof names no index")
    index, path_hashes = int(match[1]), [decode_base64(line, "a hash") for line in lines[3:]]
    require(len(path_hashes) <= HASHES_MAX, "the proof has too many hashes")
    require(all(len(item) == 32 for item in path_hashes), "a hash has a wrong length")

    size, root = open_checkpoint(note, key)
    print(f"checkpoint: signed by the key of `{key[0]}`, covers {size} records")
    computed = root_from_path(index, size, leaf_hash(record), path_hashes)
    require(computed == root, "the record is not in the tree that the checkpoint was signed for")
    said = json.loads(record + b"}")
    require(said["n"] == index + 1, f"the record says that it is number {said['n']}")
    print(f"inclusion: record {said['n']} is leaf {index} of that tree ({len(path_hashes)} hashes)")
    print(f"record: {said['at']} {json.dumps(said['event'], ensure_ascii=False)}")


# A whole log, as audit-log/src/encoding.rs describes it.

RECORD = re.compile(
    rb'\{"n":(0|[1-9][0-9]*),"at":"([0-9T:.Z-]{24})","prev":"([0-9a-f]{64})","event":(\{.*\})'
)
TAIL = re.compile(rb',"hash":"([0-9a-f]{64})"\}')
TAIL_LENGTH = len(b',"hash":""}') + 64


def split_line(line, where):
    require(line.endswith(b"\n"), f"{where}: the line has no end")
    text, tail = line[: -TAIL_LENGTH - 1], TAIL.fullmatch(line[-TAIL_LENGTH - 1 : -1])
    require(tail, f"{where}: the line carries no hash")
    return text, tail[1].decode()


def check_header(line, where, number, tree, previous, at):
    text, claimed = split_line(line, where)
    require(hashlib.sha256(text).hexdigest() == claimed, f"{where}: the header was changed")
    header = json.loads(text + b"}")
    require(header["format"] == "sekisho-audit/2", f"{where}: another format")
    require(header["segment"] == number, f"{where}: the header is that of another segment")
    require(header["first"] == tree.size + 1, f"{where}: records are missing before it")
    require(header["prev"] == previous, f"{where}: it does not continue the segment before")
    peaks = [peak.hex() for _, peak in tree.peaks]
    require(header["tree"] == peaks, f"{where}: its tree is not that of the records before")
    require(header["at"] >= at, f"{where}: the clock goes back")
    return header["at"]


def check_log(directory, key):
    directory = Path(directory)
    require(not list(directory.glob("*.zst")), "a segment is compressed: unpack it with zstd first")
    segments = sorted(directory.glob("[0-9]*.jsonl"))
    require(segments, "the folder holds no segments")
    tree, previous, at, notes = Tree(), "0" * 64, "", {}
    for number, path in enumerate(segments, 1):
        require(path.name == f"{number:08}.jsonl", f"segment {number} is missing")
        with path.open("rb") as lines:
            at = check_header(next(lines, b""), f"{path.name}:1", number, tree, previous, at)
            for line_number, line in enumerate(lines, 2):
                where = f"{path.name}:{line_number}"
                text, claimed = split_line(line, where)
                leaf = leaf_hash(text)
                require(leaf.hex() == claimed, f"{where}: the record was changed")
                record = RECORD.fullmatch(text)
                require(record, f"{where}: this is not a record")
                require(int(record[1]) == tree.size + 1, f"{where}: not the next record")
                require(record[3].decode() == previous, f"{where}: the record before was replaced")
                require(record[2].decode() >= at, f"{where}: the clock goes back")
                event = json.loads(record[4])
                if event["event"] == "checkpoint":
                    size, root = open_checkpoint(event["note"], key)
                    require(size == tree.size, f"{where}: the checkpoint covers {size} records")
                    require(root == tree.root(), f"{where}: the checkpoint has another root")
                    notes[size] = event["note"]
                tree.append(leaf)
                at, previous = record[2].decode(), claimed
    print(f"log: {tree.size} records in {len(segments)} segments, chain and numbers without gaps")
    print(f"tree: {len(notes)} checkpoints, each signed by `{key[0]}` over the root counted here")
    check_newest(directory, key, notes)


def check_newest(directory, key, notes):
    path = directory / "checkpoint"
    if not path.exists():
        require(len(notes) < 2, "the file `checkpoint` is missing")
        print("checkpoint file: none yet")
        return
    note = path.read_text()
    size, _ = open_checkpoint(note, key)
    require(notes.get(size) == note, f"the file `checkpoint` ({size} records) is not in the log")
    print(f"checkpoint file: the one in the log that covers {size} records")


def main(arguments):
    if len(arguments) not in (2, 3) or (len(arguments) == 3) != (arguments[0] == "--log"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        key = read_key(arguments[-1])
        if arguments[0] == "--log":
            check_log(arguments[1], key)
        else:
            check_proof(arguments[0], key)
    except (Wrong, OSError, ValueError, KeyError, TypeError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"wrong: {message}", file=sys.stderr)
        return 1
    print("all of this was checked and holds")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
