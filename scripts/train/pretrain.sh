#!/usr/bin/env bash
# LLaVA's first stage, projector alignment, on its own data and flags.
#   MODEL (a language model)   TOWER   DATA (json)   IMAGES (folder)   OUT   NPROC
set -euo pipefail
cd "$(dirname "$0")/../.."
MODEL=${MODEL:-lmsys/vicuna-7b-v1.5}
TOWER=${TOWER:-openai/clip-vit-large-patch14-336}
DATA=${DATA:-playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}
IMAGES=${IMAGES:-playground/data/LLaVA-Pretrain/images}
OUT=${OUT:-outputs/llava-pretrain}
NPROC=${NPROC:-$(nvidia-smi -L 2>/dev/null | wc -l)}
[ -f "$DATA" ] || { echo "DATA=$DATA: no such file" >&2; exit 2; }
echo "aligning the projector of $MODEL with $TOWER on $DATA, $NPROC GPUs -> $OUT"
exec torchrun --nproc_per_node "$((NPROC > 0 ? NPROC : 1))" -m llava.train.train \
  --deepspeed scripts/train/zero2.json --model_name_or_path "$MODEL" --vision_tower "$TOWER" \
  --version plain --data_path "$DATA" --image_folder "$IMAGES" --tune_mm_mlp_adapter True \
  --mm_vision_select_layer -2 --bf16 True --output_dir "$OUT" --num_train_epochs 1 \
  --per_device_train_batch_size 32 --learning_rate 1e-3 --weight_decay 0 --warmup_steps 0.03 \
  --lr_scheduler_type cosine --logging_steps 1 --save_strategy steps --save_steps 24000 \
  --save_total_limit 1 --model_max_length 2048 --gradient_checkpointing True \
  --dataloader_num_workers 4 --report_to none "$@"
