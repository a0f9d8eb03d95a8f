"""Every bound on what a front end or a guest may ask for, each with its reason; nothing else decides."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- Messages: from the front end, which a guest may have taken over ----------------------------------------

PAYLOAD_BYTES_MAX: Final = 4 * KIB  # the longest that we know is SET_MEM_TABLE with 264 bytes
CONFIG_BYTES_MAX: Final = 256  # VHOST_USER_MAX_CONFIG_SIZE: the largest part of it that is asked for at once
DESCRIPTORS_MAX: Final = 8  # files with one message: SET_MEM_TABLE has one for each of its regions
TABLE_REGIONS_MAX: Final = 8  # VHOST_MEMORY_BASELINE_NREGIONS; more come one by one, by ADD_MEM_REG
REGIONS_MAX: Final = (
    509  # what KVM gave a guest for long, and what other back ends answer; each is one mmap and one open file
)
QUEUES_MAX: Final = 256  # SET_VRING_KICK and its like have 8 bits for the queue
QUEUE_SIZE_MAX: Final = 4_096  # QEMU's largest has 1,024; a chain may be this long, and others wait meanwhile
GUEST_BYTES_MAX: Final = (
    4 << 40
)  # of one guest's memory: all guests share this process's 128 TiB of addresses
LOG_BYTES_MAX: Final = 2 << 30  # of dirty page bits: 64 TiB of guest addresses, with all their holes
STATE_BYTES_MAX: Final = 1 * MIB  # of a device's state that is loaded after a migration: it is held at once
MESSAGES_PER_TURN: Final = 16  # that one front end may send before others have their turn

# --- Chains: from the guest ---------------------------------------------------------------------------------

CHAIN_DESCRIPTORS_MAX: Final = 1_024  # of an indirect table, where the queue is not longer: 4 MiB in pages
REQUEST_BYTES_MAX: Final = 2 * MIB  # the readable part of a chain, copied at once; a device may ask for less
BATCH_MAX: Final = 32  # chains of one queue before others have their turn and the guest sees its answers
IDLE_KICKS_MAX: Final = (
    1_000  # in a row: a descriptor that never becomes empty keeps its thread awake for nothing
)

# --- Time ---------------------------------------------------------------------------------------------------

TURN_S: Final = 0.002  # of one device with all its queues, after which other devices have their turn
DRAIN_S: Final = 5.0  # for requests under way when a queue is stopped: the front end waits meanwhile
STATE_S: Final = 10.0  # for the other end to take or give a device's state
PATIENCE_S: Final = 0.02  # a device that still has not answered waits for a network, not for this process
POLL_S: Final = 0.001  # between two looks at a queue that has no descriptor to kick with
ACCEPT_PAUSE_S: Final = 1.0  # after a connection could not be accepted: this process has too many files open

# --- What is told of a hostile guest ------------------------------------------------------------------------

COMPLAINTS_MAX: Final = 10  # lines of log at once for each connection
COMPLAINT_S: Final = 10.0  # and then one for each of these
