#!/usr/bin/env bash
# LLaVA's second stage, visual instruction tuning, on its own data and flags. LORA=1 for LoRA.
#   MODEL   TOWER   PROJECTOR (folder of the first stage)   DATA   IMAGES   OUT   NPROC
set -euo pipefail
cd "$(dirname "$0")/../.."
MODEL=${MODEL:-lmsys/vicuna-7b-v1.5}
TOWER=${TOWER:-openai/clip-vit-large-patch14-336}
PROJECTOR=${PROJECTOR:-outputs/llava-pretrain}
DATA=${DATA:-playground/data/llava_v1_5_mix665k.json}
IMAGES=${IMAGES:-playground/data}
OUT=${OUT:-outputs/llava-finetune}
NPROC=${NPROC:-$(nvidia-smi -L 2>/dev/null | wc -l)}
[ -f "$DATA" ] || { echo "DATA=$DATA: no such file" >&2; exit 2; }
RATE=(--learning_rate 2e-5)
[ -z "${LORA:-}" ] || RATE=(--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --learning_rate 2e-4)
echo "tuning $MODEL with $TOWER on $DATA, $NPROC GPUs -> $OUT"
exec torchrun --nproc_per_node "$((NPROC > 0 ? NPROC : 1))" -m llava.train.train \
  --deepspeed scripts/train/zero3.json --model_name_or_path "$MODEL" --vision_tower "$TOWER" \
  --pretrain_mm_mlp_adapter "$PROJECTOR" --version v1 --data_path "$DATA" \
  --image_folder "$IMAGES" --image_aspect_ratio pad --group_by_modality_length True \
  --mm_vision_select_layer -2 --bf16 True --output_dir "$OUT" --num_train_epochs 1 \
  --per_device_train_batch_size 16 --weight_decay 0 --warmup_steps 0.03 \
  --lr_scheduler_type cosine --logging_steps 1 --save_strategy steps --save_steps 5000 \
  --save_total_limit 1 --model_max_length 2048 --gradient_checkpointing True \
  --dataloader_num_workers 4 --report_to none "${RATE[@]}" "$@"
