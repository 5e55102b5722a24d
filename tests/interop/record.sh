#!/usr/bin/env bash
# Runs the other libraries on what we write, and records their own folders anew: tests/interop/record.sh PYTHON
#
# Each library has an environment of its own below WORK. Folders of the libraries go to WORK/recorded, to be compared with
# (and moved over) those in tests/interop; the answers to what we wrote (`*_written/logits.safetensors`) are written anew.
set -euo pipefail
python=$(realpath "$1")
root=$(realpath "$(dirname "$0")/../..")
work=${WORK:-$root/build/interop}
mkdir -p "$work/recorded"
cd "$root/tests"

environment() { # NAME PACKAGE…
    local name=$1
    shift
    test -d "$work/$name" || { python3 -m venv "$work/$name" && "$work/$name/bin/pip" install -q "$@"; }
}

PYTHONPATH=. "$python" -m support.recorded "$work/bases"
environment adapterhub adapters==1.3.0 transformers==4.57.6 torch==2.13.0
environment torchtune torchtune==0.6.1 torchao==0.13.0 torch==2.13.0 safetensors
environment litgpt litgpt==0.5.13 torch==2.13.0 safetensors
environment diffusion diffusers==0.35.2 transformers==4.57.6 peft==0.21.2 torch==2.13.0 safetensors
environment pyreft transformers==4.45.1 torch==2.13.0 numpy==2.4.6 accelerate==1.15.0 datasets==3.6.0 \
    matplotlib==3.10.0 seaborn==0.12.2 networkx==3.4.2 sentencepiece==0.2.1
"$work/pyreft/bin/pip" install -q --no-deps pyreft==0.1.0 pyvene==0.1.8 # what they ask for besides takes an hour
for form in litgpt pyreft; do
    PYTHONPATH=. "$python" -m support.written "$form"
    PYTHONPATH=. "$work/$form/bin/python" "support/record_$form.py" "$work/bases" "interop/${form}_written"
done
for form in adapterhub torchtune; do
    rm -rf "$work/recorded/${form}_folders"
    "$work/$form/bin/python" "support/record_$form.py" "$work/bases" "$work/recorded/${form}_folders"
    PYTHONPATH=. "$python" -m support.written "$form"
    "$work/$form/bin/python" "support/record_$form.py" "$work/bases" "interop/${form}_written"
done
rm -rf "$work/recorded/litgpt_folders" "$work/recorded/kohya_folders" "$work/recorded/diffusers_folders"
"$work/litgpt/bin/python" support/record_litgpt.py "$work/bases" "$work/recorded/litgpt_folders"
test -d "$work/sd-scripts" || git clone -q https://github.com/kohya-ss/sd-scripts "$work/sd-scripts"
git -C "$work/sd-scripts" checkout -q 48d368fa
"$work/diffusion/bin/python" support/record_diffusion.py "$work/bases" "$work/sd-scripts" "$work/recorded"
# what we write, in diffusers as it is now and in sd-scripts
environment diffusers_now diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 torch==2.13.0 accelerate pytest safetensors
PYTHONPATH=../src:. SD_SCRIPTS="$work/sd-scripts" "$work/diffusers_now/bin/python" -m pytest -q interop/test_diffusion_write.py
environment parameters peft==0.18.1 transformers==5.23.0 torch==2.13.0
environment swift ms-swift==4.6.0 peft==0.18.1 torch==2.13.0
environment nemo transformers==5.18.0 peft==0.21.2 torch==2.13.0 datasets torchdata torchao==0.18.0 pyyaml tiktoken \
    megatron-fsdp==0.5.0 mistral-common flashoptim
"$work/nemo/bin/pip" install -q --no-deps nemo-automodel==0.7.0 # other dependencies are kernels for GPUs
"$work/nemo/bin/pip" uninstall -q -y triton
test -d "$work/bridge" || git clone -q https://github.com/NVIDIA-NeMo/Megatron-Bridge "$work/bridge"
git -C "$work/bridge" checkout -q 067f987d
rm -rf "$work/recorded/peft_folders" && cp -r interop/peft_folders "$work/recorded/peft_folders"
PYTHONPATH=../src:. "$python" support/record_bridge.py "$work/bases" "$work/bridge/src" "$work/recorded/peft_folders"
for each in parameters:peft_parameters swift:swift nemo:nemo; do
    "$work/${each%%:*}/bin/python" "support/record_${each##*:}.py" "$work/bases" "$work/recorded/peft_folders"
done
