// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Accounts} from "./Accounts.sol";
import {EscrowState} from "./EscrowState.sol";
import {IJobEscrow} from "./interfaces/IJobEscrow.sol";
import {Jobs} from "./Jobs.sol";

/// @title JobEscrow
/// @notice See `IJobEscrow`. Immutable: money moves by the signatures of those it belongs to, and by time. The owner sets a
/// fee within `MAX_FEE_BPS` and each order's own limit, and can stop deposits and new jobs; no call of the owner's lowers
/// anyone's balance or holds up a result, a payment, a refund or a withdrawal.
/// @dev Batches make no external call but to the registry and, within `SignatureLib`'s limits, to the wallets that signed.
/// Warning: The registry is trusted: it decides whose results for open orders count.
/// Warning: Tokens are the requester's and the node's choice. One that takes back balances or lies about them harms those
/// who deal in it, and only in that token.
contract JobEscrow is Accounts, Jobs {
    /// @param registry_ The `NodeRegistry`.
    /// @param thawPeriod_ Seconds between `thaw` and `withdraw`.
    /// @param owner_ The first owner.
    constructor(address registry_, uint64 thawPeriod_, address owner_) EscrowState(registry_, thawPeriod_, owner_) {}

    /// @inheritdoc IJobEscrow
    function setFeeBps(uint16 feeBps_) external override onlyOwner {
        require(feeBps_ <= MAX_FEE_BPS, FeeTooHigh(feeBps_, MAX_FEE_BPS));
        feeBps = feeBps_;
        emit FeeBpsSet(feeBps_);
    }

    /// @inheritdoc IJobEscrow
    function setPaused(bool paused_) external override onlyOwner {
        paused = paused_;
        emit PausedSet(paused_);
    }
}
