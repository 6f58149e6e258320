"""`train_sft.py` under FSDP2 on a CPU: `torchrun --nproc_per_node 2 tests/fsdp_on_cpu.py --config ...`.

accelerate 1.15 takes FSDP's settings only where there is an accelerator. What it then does, PyTorch can do over gloo
on a CPU as well; here accelerate is told to. Nothing else is changed: wrapping, training, saving are its own.
"""

import os
import sys

SETTINGS = {  # what `accelerate launch --config_file configs/accelerate/fsdp2.yaml` passes on
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "ACCELERATE_USE_FSDP": "true",
}


def have_accelerate_take_it() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    init, get_state_dict = AcceleratorState.__init__, Accelerator.get_state_dict

    def init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
        if "fsdp_plugin" in self._shared_state:  # the state is made again and again, of what lies below it
            self.distributed_type = DistributedType.FSDP

    def get_finished_state_dict(self, *args, **kwargs):
        """On a GPU the move to the CPU waits for what is gathered; here nothing moves, and nothing would wait."""
        gathered = get_state_dict(self, *args, **kwargs)
        return {name: getattr(tensor, "trigger_wait", tensor.clone)() for name, tensor in gathered.items()}

    AcceleratorState.__init__, Accelerator.get_state_dict = init_with_fsdp, get_finished_state_dict


if __name__ == "__main__":
    os.environ.update(SETTINGS, ACCELERATE_USE_CPU="true")
    import train_sft
    from ferid_dataset.train import arguments

    have_accelerate_take_it()
    arguments.check_machine = lambda *groups: None  # which would say that FSDP wants a GPU
    sys.exit(train_sft.run())
