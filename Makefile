# Short names for the scripts, which say what they do.
PREFIX ?= /usr/local
DESTDIR ?=
export PREFIX DESTDIR

.PHONY: setup demo test install uninstall

setup:
	scripts/setup

demo:
	scripts/demo

test:
	scripts/test

install: setup
	scripts/install install

uninstall:
	scripts/install uninstall
