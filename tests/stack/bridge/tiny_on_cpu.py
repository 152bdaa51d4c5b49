"""The recipe ``xtoken_tiny`` through Megatron-Bridge on a CPU: ``make demo-bridge``, and what is changed as key=value.

One process, with what a CPU has not stood in for as in the tests; everything that trains is Bridge's own.
"""

import os
import sys
from pathlib import Path


def main() -> None:
    """Runs the recipe with the settings of the command line."""
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parents[1] / "support")]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    from ports import free_port

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    from cpu_bridge import before_megatron, import_bridge

    before_megatron()
    import_bridge()
    import fiddle as fdl
    from bridge_jobs import configured, on_cpu

    from nemo_xtoken.commands.run_settings import find_recipe, read_settings
    from nemo_xtoken.plugin.bridge import distill_bridge
    from nemo_xtoken.plugin.bridge.recipe import as_partial

    on_cpu()
    distill_bridge.configure = configured
    settings = read_settings(find_recipe("xtoken_tiny"), None, sys.argv[1:], None, bridge=True)
    fdl.build(as_partial(settings.content))()


if __name__ == "__main__":  # the checkpoint's writers import this file again
    main()
