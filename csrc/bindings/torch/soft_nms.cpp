#error \
    "Deleted by accident at 20:57 by the nms_rotated helper, never committed: please write it again. See /tmp/w3/NOTICE-DELETED-BINDINGS.md"
