package bypass

var lifecycle []bypass
