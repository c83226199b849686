# Every way of pretraining, on drawn chests: no data and no GPU needed.
set -e
NET="--architecture convnext-micro --base-width 16 --drop-path 0"
SCANS="--width 64 --depth 48 --crop lungs"
FIT="--batch-size 4 --learning-rate 3e-3 --schedule 1cycle --ema 0.9"
MILD="--random-crop 0 --flip-depth 0 --flip-height 0 --flip-width 0.5 --rotate 0 --elastic 0 --noise 0 --blur 0"

cov3d phantom masked --scans 120 --size 96 --seed 3
cov3d phantom graded --scans 60 --size 96 --seed 7

# 1. pictures: each slice says whether its chest has lesions
cov3d pretrain graded/train --method imagenet $NET --side 64 --epochs 3 --batch-size 32 --learning-rate 1e-3 --rate-batch 0 \
  --mixup 0 --cutmix 0 --randaugment 0 --erasing 0 --least-crop 0.5
PICTURES="--weights pretrained/imagenet/weights.safetensors --inflate full"

# 2. the masks of another study
cov3d pretrain masked --method segmentation $NET $SCANS $FIT $MILD $PICTURES --epochs 10

# 3. masks that the network of step 2 draws
cov3d pretrain graded --method segmia --teacher pretrained/segmentation $NET $SCANS $FIT $MILD $PICTURES --epochs 5

# 4. its masks, and severities
cov3d pretrain graded --method multitask --teacher pretrained/segmentation $NET $SCANS $FIT $MILD $PICTURES --epochs 5

# and what all this is for
cov3d train graded --task severity $NET $SCANS $FIT $MILD --epochs 10 --weights pretrained/segmentation/masks.safetensors
cov3d infer graded/validation --model outputs/severity --model pretrained/segmentation --masks lesions
cov3d evaluate predictions.csv graded
