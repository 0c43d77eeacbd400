"""One way to serve a union: pyfuse3 on the kernel's FUSE. The only importer of pyfuse3."""
