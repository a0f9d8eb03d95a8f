"""Every bound on untrusted input, each with its reason; nothing else decides how much is too much."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# --- The bootstrap's plain head: parsed before anything is authenticated
# -------------------------------------

SUPERBLOCK_BYTES_MAX = 1 * MIB  # 4,095 blobs of ~90 bytes and a name fit three times over
ENVELOPE_BYTES_MAX = (
    1 * MIB
)  # 64 post-quantum recipients (~1.2 KiB each) and 16 signatures fit ten times over
MSGPACK_DEPTH_MAX = (
    4  # map > list > map > value is all that the format uses; deeper is an attack on the parser
)
NAME_CHARS_MAX = 255  # of an image name: shown on one line of a terminal
REQUIRED_FEATURES_MAX = 16  # the format defines none yet; a list is only there to be refused by name
RECIPIENTS_MAX = 64  # each one may cost an unwrap attempt
SIGNATURES_MAX = 16  # each one may cost a verification
WRAPPED_KEY_BYTES_MAX = 4 * KIB  # ML-KEM-768+X25519 encapsulation is 1,120 bytes plus the sealed key
SIGNATURE_BYTES_MAX = 256  # Ed25519 64, ECDSA-P256 in DER at most 72

# --- Scrypt: the envelope chooses the cost, so a hostile one could stop the machine
# --------------------------

SCRYPT_LOG2_N_MIN = 14  # below this a stolen image is guessed too cheaply
SCRYPT_LOG2_N_MAX = 18  # 128 * 2^18 * 8 = 256 MiB and about a second
SCRYPT_R = 8
SCRYPT_P = 1
PASSPHRASE_RECIPIENTS_MAX = 8  # a wrong passphrase is tried on every one, at up to a second and 256 MiB each

# --- Blobs, chunks, pages
# ------------------------------------------------------------------------------------

BLOBS_MAX = (
    4_095  # EROFS has 16 bits of device slots; a page of them is far more than any chain of dictionaries
)
PAGE_SIZE_MIN = 4 * KIB  # one EROFS block
PAGE_SIZE_MAX = 1 * MIB  # what a single metadata look-up may cost
METADATA_BYTES_MAX = 256 * GIB  # 2 billion files; a check decodes all of it, and a small image can claim it
PAGES_MAX = METADATA_BYTES_MAX // (64 * KIB)  # nids are looked up in 64 KiB pages
PAGE_TABLE_BYTES_MAX = 256 * MIB  # held in memory while mounted
CHUNK_DECODED_BYTES_MAX = (
    16 * MIB
)  # what one 4 KiB read may make us decode; also the bound of a decompression bomb
CHUNK_ENCODED_OVERHEAD_MAX = (
    4 * KIB
)  # a codec must not grow a chunk by more than a frame header; tag included
ZSTD_EMPTY_STEPS_MAX = 1_000  # blocks and frames of a layer that hold nothing, in a row: each costs time
ZSTD_WINDOW_BYTES_MAX = 16 * MIB  # no frame needs a window larger than the largest chunk
DECODED_BLOCKS_MAX = 0xFFFF_FFFE  # EROFS block addresses are 32 bits, all ones means a hole
PREFETCH_RUNS_MAX = 1 << 16  # read and held by whoever warms: 768 KiB, 16 GiB of scattered chunks at least

READ_DEADLINE_S = (
    60.0  # a reader who waits for another's fetch is told after this; longer than any disk takes
)

# --- EROFS: sealed, but perhaps by a hostile author
# ----------------------------------------------------------

FILE_NAME_BYTES_MAX = 255  # EROFS_NAME_LEN, NAME_MAX
SYMLINK_BYTES_MAX = 4_095  # PATH_MAX less its NUL
XATTR_BYTES_MAX = 256 * KIB  # the inode's icount is 16 bits of 4-byte units
XATTR_VALUE_BYTES_MAX = 0xFFFF  # erofs_xattr_entry.e_value_size is 16 bits
XATTR_SHARED_MAX = 255  # erofs_xattr_ibody_header.h_shared_count is 8 bits
DIRECTORY_BYTES_MAX = 8 * GIB  # 200 million short names; larger sizes only serve to keep a reader busy
PATH_DEPTH_MAX = 4_096  # deeper trees cannot be reached by a path of PATH_MAX bytes per step of 2
FILE_SIZE_MAX = 2**63 - 1  # off_t
CHUNKBITS_MAX = 12 + 31  # EROFS_CHUNK_FORMAT_BLKBITS_MASK above 4 KiB blocks
CHUNK_INDEXES_MAX = 1 << 24  # we write for one file, 128 MiB: a sparse one of 8 EiB costs its maker nothing

# --- Access traces: text that anybody may have edited
# ------------------------------------------------------------------

TRACE_BYTES_MAX = 64 * MIB  # a million lines of usual paths; read at once
TRACE_LINE_BYTES_MAX = 16 * KIB  # PATH_MAX with each byte escaped, and two numbers
TRACE_PIECES_MAX = 1 << 18  # noted while reading, ~200 bytes each: 64 GiB of files, in 50 MiB
TRACE_EXTENTS_MAX = 1 << 22  # looked at to go from files to chunks or back: 1 TiB of data, some 20 s

# --- Archives to build from: chosen by who builds, but perhaps made by somebody else
# --------------------------

TAR_EXTENDED_BYTES_MAX = 16 * MIB  # of pax records before one file: its xattrs, or a map of 400,000 extents
TAR_TRAILER_BYTES_MAX = 1 * GIB  # behind the end mark: tapes are padded, but nobody reads on for ever
SPARSE_EXTENTS_MAX = 1 << 20  # a map is held in memory, about 150 bytes for each
CHECKPOINTS_BYTES_MAX = 1 * GIB  # of one gzip layer: 32 KiB for each MiB, so of a layer of 32 GiB
LAYER_PLAIN_BYTES_MAX = 1 << 40  # of an image's layer, unpacked; more than any node has for images
LAYER_EXPANSION_MAX = 2_000  # times its stored size, once it is beyond 1 GiB; deflate itself ends at 1,032
LAYER_NAMES_BYTES_MAX = 2 * GIB  # of paths, targets and xattrs of all layers of an image, held at once
LAYER_PATH_BYTES_MAX = 4_095  # PATH_MAX less its NUL: longer ones are nowhere unpacked
LAYER_MEMBERS_MAX = 1 << 22  # of all layers of an image together, about 1 KiB of memory each
INLINE_BYTES_MAX = 128 * MIB  # of small files of one source, or layer, held until the metadata is written
PATH_SYMLINKS_MAX = 40  # followed on the way to one path: MAXSYMLINKS of path_resolution(7)

# --- OCI documents: plain JSON from whoever holds the folder
# --------------------------------------------------

OCI_JSON_BYTES_MAX = 4 * MIB  # registries refuse manifests above 4 MiB
OCI_LAYERS_MAX = BLOBS_MAX + 1  # one layer a blob, and the bootstrap
OCI_INDEX_DEPTH_MAX = 2  # of indexes in indexes; builders make one of one manifest for each platform
ARCHIVE_MEMBERS_MAX = 1 << 16  # of an OCI archive: five files an image, and its layers

# --- Registries and object stores: who answers may be anybody
# ----------------------------------------------------------

STORE_DEADLINE_S = 30.0  # of one read with all its attempts: less than what a waiting reader is given
STORE_STALL_S = 10.0  # without a byte; a slow link sends some all the time
STORE_RATE_MIN_BYTES_PER_S = 64 * KIB  # of a mirror or proxy: half a Mbit/s, where others can be asked
STORE_ATTEMPTS_MAX = 5  # waits between them add up to about 2 s, when nobody asks for more
TOKEN_JSON_BYTES_MAX = 1 * MIB  # of a token service's answer; tokens have a few KiB
LOGIN_JSON_BYTES_MAX = 1 * MIB  # of a config.json, or of what a credential helper says
RANGE_SKIPPED_BYTES_MAX = 4 * MIB  # of a whole body, read through for a range by servers that know no ranges

# --- Containers: what the image's author wrote, read by root
# ----------------------------------------------------------

ACCOUNT_FILE_BYTES_MAX = 4 * MIB  # of an image's passwd or group, which is read whole: 50,000 lines
ACCOUNT_GROUPS_MAX = 65_536  # NGROUPS_MAX of linux/limits.h

# --- Key files
# ------------------------------------------------------------------------------------------------

KEY_FILE_BYTES_MAX = 16 * KIB  # ours are under 4 KiB
PASSPHRASE_BYTES_MAX = 1 * KIB

# --- FUSE requests: from the kernel, or from a guest who may send anything
# --------------------------

FUSE_READ_BYTES_MAX = 16 * MIB  # 256 pages of 64 KiB, the largest READ of any kernel: it is held at once
FUSE_LISTING_BYTES_MAX = 128 * KIB  # some 700 names with attributes, a few ms: others wait meanwhile
FUSE_EXTENTS_MAX = 1_024  # runs of a file that one LSEEK looks at, some 10 ms; beyond them all counts as data
XATTR_NAME_BYTES_MAX = 255  # XATTR_NAME_MAX of linux/limits.h

# --- Handing a mount over: from a process of the same user
# -----------------------------------------------------------

HANDOVER_MESSAGE_BYTES_MAX = (
    128 * KIB
)  # counts of all kinds of requests are 10 KiB; names of 64 key files more
HELD_DESCRIPTORS_MAX = 16  # that a service manager passes us, or we hold for a server; two are used

# --- Memory
# ---------------------------------------------------------------------------------------------------

CACHE_BYTES_DEFAULT = 256 * MIB  # of verified pages and chunks, for each open image
NODE_CACHE_BYTES_DEFAULT = 10 * GIB  # of encoded chunks on disk, for all images: some fifty large ones

# --- What is told of a hostile image ------------------------------------------------------------------------

PROBLEMS_MAX = 1_000  # lines that a check keeps; a hostile image can have one for each of a million names
PROBLEM_PATHS_MAX = 16  # files named for one damaged chunk, which may hold pieces of thousands
