"""`python -m jaxcircuits`."""

from jaxcircuits.cli import main

raise SystemExit(main())
